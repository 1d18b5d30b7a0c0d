// Device and kernel descriptions of the fake GPU: plain data, no behaviour.
#pragma once

#include <cstdint>

namespace tierline::fake {

constexpr int max_name = 64;

// The pipe of an SM that a kernel's arithmetic runs on. Instruction work that is not arithmetic (addresses,
// conversions, exponentials) is counted as fp32 operations, as Nsight's sm__throughput counts the busiest pipe.
enum class Unit : std::uint8_t { fp32 = 0, tensor = 1 };

// One GPU. Sources of the values are beside them in devices.cpp.
struct DeviceSpec {
    char name[max_name];
    std::int32_t sms;
    std::int32_t registers_per_sm;         // 32-bit registers
    std::int32_t register_granularity;     // registers are given to a warp in units of this many
    std::int32_t shared_bytes_per_sm;      // usable by blocks, the driver's 1 KiB a block included in each block's need
    std::int32_t shared_bytes_per_block;   // opt-in maximum
    std::int32_t threads_per_sm;
    std::int32_t blocks_per_sm;
    std::int32_t max_threads_per_block;
    std::int32_t lane_granularity;         // SMs of a green context come in steps of this
    std::int32_t compute_major, compute_minor;
    std::int64_t memory_bytes;
    std::int64_t l2_bytes;
    double l2_bytes_per_s;                 // all SMs together
    double dram_bytes_per_s;               // sustained (what a large copy reaches), the "1.0" of bw_util
    double sm_bytes_per_s;                 // what one SM can draw, from L2 or beyond
    double tensor_flops_per_s; // dense bf16/fp16 peak of the datasheet, the "1.0" of sm_util for Unit::tensor
    double fp32_flops_per_s;               // the "1.0" of sm_util for Unit::fp32
    double tensor_ceiling; // share of the tensor peak that co-resident kernels can reach together (power)
    double fp32_ceiling;
    double tensor_issue;                   // issue slots that a fully busy tensor pipe takes (fp32: all of them)
    double host_to_device_bytes_per_s, device_to_host_bytes_per_s, device_copy_bytes_per_s;
    std::int64_t copy_latency_ns;
    std::int64_t launch_latency_ns;        // from the driver's submission to the front end of the device
    std::int64_t stream_gap_ns; // between the end of a kernel and the next of its stream reaching the front end
    std::int64_t graph_gap_ns;             // the same between nodes of one graph
    std::int64_t ramp_ns;                  // front end to first resident block; counts into the kernel's duration
    std::int64_t launch_jitter_ns; // uniform 0..this added to each launch; 1 launch in 256 gets ten times as much
    double work_jitter;                    // each launch's work varies by a uniform +- share
    std::int64_t slice_ns;                 // time slice of a context without MPS
    std::int64_t switch_ns;                // cost of a context switch, nothing runs
};

enum class Family : std::uint8_t {
    other,
    gemm,
    skinny_gemm,
    conv,
    attention,
    decode_attention,
    norm,
    elementwise,
    optimizer,
    reduction,
    embedding,
    collective,
    spin
};

enum class Spin : std::uint8_t {
    none,
    until_released, // keeps its blocks resident until its token has been posted once (spin_post, or a kernel with post_token)
};

// One kernel, with its work per block so that any grid of it can be launched. All fields are plain numbers.
struct KernelSpec {
    char name[max_name];
    Family family;
    Unit unit;
    Spin spin;
    bool cooperative;                      // all blocks must be resident together
    std::uint32_t grid[3];
    std::uint32_t block[3];
    std::int32_t registers_per_thread;
    std::int32_t static_shared_bytes;      // per block
    std::int32_t dynamic_shared_bytes;     // per block
    double flops_per_block;
    double bytes_per_block;                // requested by the SM from L2 (read and written)
    double l2_hit;                         // share of bytes_per_block that L2 serves when the kernel runs alone, 0..1
    double working_set_bytes;              // what should stay in L2 for that hit share; also what it evicts of others
    double compute_efficiency;             // share of the unit's peak that a full SM of its blocks reaches, 0..1
    double dram_efficiency;                // useful share of the DRAM time it takes (access pattern), 0..1
    std::int32_t saturating_threads; // resident threads an SM needs for those rates; fewer give a proportional share
    std::int64_t block_floor_ns;           // a block never ends sooner (latency chains; link time of collectives)
    std::int64_t shape[4];                 // as a library would tag it: m, n, k, batch; or 0
    std::int32_t element_bytes;            // of the shape's operands
    std::uint32_t spin_token;              // 0: none
    std::uint32_t post_token;              // 0: none; posted when the kernel ends
};

// What a profiler would show of a kernel that runs alone on the whole device, without jitter.
struct AloneProfile {
    std::int64_t duration_ns;              // front end to last block; for a spinning kernel 0
    double sm_util, bw_util;               // mean over duration_ns, relative to the unit's peak and to dram_bytes_per_s
    double waves;                          // blocks / (blocks that fit)
    std::int32_t occupancy_blocks;         // blocks that fit one SM
    std::int32_t sm_blocks;                // SMs it occupies: min(sms, ceil(blocks / occupancy))
    double flops, dram_bytes;              // in total
};

enum class Gpu : std::uint8_t { h200, a100, v100 };
DeviceSpec device_spec(Gpu gpu);
// Returns false for a name that is none of h200, a100, v100.
bool device_spec_by_name(const char* name, DeviceSpec& out);

inline std::int64_t blocks_of(const KernelSpec& k) {
    return std::int64_t{k.grid[0]} * k.grid[1] * k.grid[2];
}
inline std::int32_t threads_of(const KernelSpec& k) {
    return static_cast<std::int32_t>(k.block[0] * k.block[1] * k.block[2]);
}

// Blocks of `kernel` that fit one empty SM; 0 when even one does not.
std::int32_t occupancy(const DeviceSpec& device, const KernelSpec& kernel);

// The kernel as a library would build it for a device with less shared memory: fewer pipeline stages. The named
// kernels and programs are sized for the H200; pass their kernels through this before registering them elsewhere.
KernelSpec fitted(const DeviceSpec& device, KernelSpec kernel);

}  // namespace tierline::fake
