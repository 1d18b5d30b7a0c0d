// Device specs. Marks: [D] datasheet or programming guide of the maker, [M] measured on such a machine by this
// project's predecessors (notes on kernels, section 2), [G] from the published green-context measurements on a 132-SM
// part (simon-mo/green-ctx), [A] assumed, by analogy; stated so that nobody takes it for a measurement.
#include <cstring>
#include <initializer_list>

#include "tierline/fake/specs.hpp"

namespace tierline::fake {
namespace {

constexpr std::int64_t gib = std::int64_t{1} << 30;
constexpr std::int64_t mib = std::int64_t{1} << 20;

void set_name(DeviceSpec& d, const char* name) {
    std::strncpy(d.name, name, max_name - 1);
}

DeviceSpec common() {
    DeviceSpec d{};
    d.registers_per_sm = 65536;            // [D] all three
    d.register_granularity = 256;          // [D] occupancy tables
    d.threads_per_sm = 2048;               // [D]
    d.blocks_per_sm = 32;                  // [D]
    d.max_threads_per_block = 1024;        // [D]
    d.tensor_ceiling = 0.82;               // [A] co-resident GEMMs gain little over one: the clock falls with power
    d.fp32_ceiling = 0.92;                 // [A]
    d.tensor_issue = 0.35;                 // [A] one warp-group instruction keeps the tensor pipe busy for many cycles
    d.copy_latency_ns = 1500;              // [A] engine start
    d.launch_latency_ns = 1800; // [A] doorbell to front end; with host call and ramp a null kernel takes ~5 us
    d.stream_gap_ns = 1100;                // [A] typical gap of back-to-back kernels in a profiler's timeline: ~1 us
    d.graph_gap_ns = 600;                  // [A] graphs roughly halve it
    d.ramp_ns = 900;                       // [A] a kernel that does nothing shows 1.5-2 us; the rest is its block floor
    d.launch_jitter_ns = 400;              // [A]
    d.work_jitter = 0.01;                  // [A] 1 %: clocks and DRAM refresh
    d.slice_ns = 2'000'000;                // [A] default time slice of a context, about 2 ms
    d.switch_ns = 40'000;                  // [A] order of the preemption times published by GPreempt (ATC'25)
    return d;
}

DeviceSpec h200() {
    DeviceSpec d = common();
    set_name(d, "h200");
    d.sms = 132;                           // [M]
    d.shared_bytes_per_sm = 228 * 1024;    // [D]
    d.shared_bytes_per_block = 227 * 1024; // [D]
    d.lane_granularity = 8;                // [D] compute capability 9.0
    d.compute_major = 9;
    d.memory_bytes = 141 * gib;            // [D]
    d.l2_bytes = 60 * mib;                 // [M]
    d.l2_bytes_per_s = 7.5e12;             // [A] about 1.75 times DRAM in micro-benchmarks of the Hopper generation
    d.dram_bytes_per_s = 4.3e12;           // [M] large device copy, reads and writes counted (datasheet 4.8e12)
    // [G] a norm keeps .195 .38 .74 .95 of its speed on 8 16 32 48 SMs: one SM draws 0.0244 of the sustained DRAM rate,
    // which is 105 GB/s of the 127 GB/s that 64 bytes a clock at 1.98 GHz give.
    d.sm_bytes_per_s = 105e9;
    d.tensor_flops_per_s = 990e12;         // [D] dense bf16; [M] 769-798e12 at 8192^3, hence efficiencies near 0.79
    d.fp32_flops_per_s = 67e12;            // [D]
    d.host_to_device_bytes_per_s = 55e9;   // [A] PCIe 5 x16 less protocol
    d.device_to_host_bytes_per_s = 52e9;
    d.device_copy_bytes_per_s = 1.9e12;    // bytes copied; each is read and written, so 0.88 of the DRAM rate
    return d;
}

DeviceSpec a100() {
    DeviceSpec d = common();
    set_name(d, "a100");
    d.sms = 108;                           // [D]
    d.shared_bytes_per_sm = 164 * 1024;    // [D]
    d.shared_bytes_per_block = 163 * 1024; // [D]
    d.lane_granularity = 2;                // [D] green contexts on compute capability 8.x: steps of 2, at least 4
    d.compute_major = 8;
    d.memory_bytes = 80 * gib;             // [D]
    d.l2_bytes = 40 * mib;                 // [D]
    d.l2_bytes_per_s = 4.5e12;             // [A]
    d.dram_bytes_per_s = 1.8e12;           // [D] 2.039e12 less 12 % as on the H200
    d.sm_bytes_per_s = 50e9;               // [A] 36 SMs saturate DRAM
    d.tensor_flops_per_s = 312e12;         // [D]
    d.fp32_flops_per_s = 19.5e12;          // [D]
    d.host_to_device_bytes_per_s = 25e9;
    d.device_to_host_bytes_per_s = 24e9;
    d.device_copy_bytes_per_s = 0.8e12;
    return d;
}

DeviceSpec v100() {
    DeviceSpec d = common();
    set_name(d, "v100");
    d.sms = 80;                            // [D]
    d.shared_bytes_per_sm = 96 * 1024;     // [D]
    d.shared_bytes_per_block = 96 * 1024;  // [D]
    d.lane_granularity = 2;                // [A] green contexts do not exist there; lanes still work in the model
    d.compute_major = 7;
    d.memory_bytes = 16 * gib;             // [D] the 16 GB part of Orion's measurements
    d.l2_bytes = 6 * mib;                  // [D]
    d.l2_bytes_per_s = 2.1e12;             // [A]
    d.dram_bytes_per_s = 0.8e12;           // [D] 0.9e12 less 11 %
    d.sm_bytes_per_s = 28e9;               // [A] about 29 SMs saturate DRAM
    d.tensor_flops_per_s = 125e12;         // [D]
    d.fp32_flops_per_s = 15.7e12;          // [D]
    d.host_to_device_bytes_per_s = 12e9;
    d.device_to_host_bytes_per_s = 12e9;
    d.device_copy_bytes_per_s = 0.36e12;
    return d;
}

}  // namespace

DeviceSpec device_spec(Gpu gpu) {
    switch (gpu) {
        case Gpu::a100: return a100();
        case Gpu::v100: return v100();
        case Gpu::h200: break;
    }
    return h200();
}

bool device_spec_by_name(const char* name, DeviceSpec& out) {
    for (Gpu gpu : {Gpu::h200, Gpu::a100, Gpu::v100}) {
        const DeviceSpec d = device_spec(gpu);
        if (std::strcmp(d.name, name) == 0) {
            out = d;
            return true;
        }
    }
    return false;
}

}  // namespace tierline::fake
