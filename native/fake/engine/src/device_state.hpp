// The whole state of one fake device: fixed capacity, indices only, trivially copyable. Free slots are chained
// through `next`; arrays with a `..._count` beside them are dense. Zeros are a valid "never reset" state.
#pragma once

#include <cstdint>
#include <type_traits>

#include "tierline/fake/device.hpp"

namespace tierline::fake {

constexpr int max_sms = 192;
constexpr int max_contexts = 64;
constexpr int max_streams = 1024;
constexpr int max_events = 16384;
constexpr int max_kernels = 4096;
constexpr int max_ops = 32768;
constexpr int max_cohorts = 512;
constexpr int max_active = 256; // kernels that have reached the front end, as on a device: a bound on concurrency
constexpr int max_tokens = 256;
constexpr int completion_ring = 16384;
constexpr int sample_ring = 16384;
constexpr int kernel_hash_slots = 8192;

// A kernel number with what dispatch needs of it worked out once. Rates are blocks per ns.
struct KernelEntry {
    KernelSpec spec;
    AloneProfile alone;
    std::uint64_t hash;
    std::int64_t blocks;
    std::int32_t block_registers, block_shared, block_threads, occupancy;
    double saturating_blocks;              // resident blocks an SM needs for full rates
    double sm_compute_rate;                // of a full SM, when only compute limits it; infinite without FLOPs
    double sm_draw_rate;                   // of a full SM, when only its draw limits it
    double floor_rate;                     // of one block
    double tensor_use, fp32_use;           // ns of a whole SM's pipe per block
    double draw_use;                       // ns of a whole SM's draw per block
};

enum class OpState : std::uint8_t { queued, timed, blocked, active };

struct Op {
    OpId id;
    std::int64_t submitted_ns, ready_ns, start_ns;
    std::int64_t unstarted, resident;      // blocks
    std::int64_t bytes;
    std::uint64_t cookie;
    std::uint64_t event_record;            // number of the record this op makes or waits for
    double speed;                          // work jitter: multiplies its rates
    std::int32_t next;                     // in its stream, in an engine's queue's stead `engine_next`
    std::int32_t engine_next;
    std::int32_t stream, kernel, event;
    std::int32_t cohorts;
    OpKind kind;
    OpState state;
    Direction direction;
    bool graph_inner;                      // a node behind the first of a graph
    bool spinning;                         // a spin kernel that has not been released
};

struct Stream {
    std::int32_t head, tail;               // ops; -1
    std::int32_t context, next_in_context;
    std::int32_t priority, first_sm, end_sm;
    std::uint32_t client;
    OpId completed, submitted;
    std::int64_t last_end_ns;
    bool used, blocking, legacy, closing;
};

struct Context {
    std::int32_t first_stream, legacy_stream;
    std::int32_t active;                   // kernels at the front end
    std::int64_t ops;                      // queued or running
    bool used;
};

struct Event {
    std::uint64_t recorded, completed;     // numbers of the latest record asked for, and completed (operation ids)
    std::int64_t time_ns;
    std::int32_t next;
    bool used;
};

// Blocks of one kernel on the SMs [lo, hi), `per_sm` on each, that run in step: `left` rounds of them remain.
// A device copy is a cohort without SMs.
struct Cohort {
    std::int32_t op, lo, hi, per_sm;
    double rounds, left;                   // as begun, and remaining
    double rate;                           // rounds per ns
    std::int64_t end_ns;
    double copy_rate, copy_dram_bytes;     // of a device copy: rounds per ns at most, DRAM bytes in all
    bool paused;                           // its context is switched out
};

// SMs [lo, next run's lo) whose resources are used alike.
struct Run {
    std::int32_t lo, hi, registers, shared, threads, blocks;
};

struct CopyEngine {
    std::int32_t first, last;              // ops, in order of arrival; the first is being copied
    std::int64_t end_ns;
};

struct DeviceState {
    DeviceSpec spec;
    std::uint64_t seed;
    std::int64_t now_ns, progressed_ns, next_ns;
    OpId last_op;
    bool mps, dispatch_due, rates_due, logging;

    std::int32_t op_free, op_fresh, live_ops;
    std::int32_t event_free, event_fresh;
    std::int32_t stream_fresh, kernel_count, cohort_count, active_count, timed_count, blocked_count, run_count;

    // Time slicing of contexts: `current` runs (-1: none), until slice_end_ns if others have work.
    std::int32_t current, previous, switch_to;
    std::int64_t slice_end_ns, switch_end_ns;

    CopyEngine engines[2];                 // host to device, device to host
    TrueSums sums;
    Truth truth;
    double sm_use_now, bw_use_now;         // achieved

    std::uint32_t completion_read, completion_write, sample_read, sample_write;  // running counts
    std::uint32_t tokens[max_tokens];

    Context contexts[max_contexts];
    Run runs[max_sms + 1];
    Cohort cohorts[max_cohorts];           // dense
    std::int32_t active[max_active];       // kernel ops at the front end, by priority then arrival
    std::int32_t timed[max_streams], blocked[max_streams];   // streams whose head waits for a time, for others
    std::int32_t kernel_slots[kernel_hash_slots];            // kernel + 1
    Stream streams[max_streams];
    Completion completions[completion_ring];
    TruthSample samples[sample_ring];
    Event events[max_events];
    KernelEntry kernels[max_kernels];
    Op ops[max_ops];
};
static_assert(std::is_trivially_copyable_v<DeviceState>);

// blocks.cpp: residency.
void clear_runs(DeviceState& s);
void occupy(DeviceState& s, const Cohort& c, int sign);
void dispatch(DeviceState& s);
void remove_cohort(DeviceState& s, int index);
void update_sums(DeviceState& s);
void switch_contexts(DeviceState& s);      // decides who runs; sets slice and switch times

// rates.cpp: speeds of all cohorts and their ends.
void update_rates(DeviceState& s);
void progress(DeviceState& s);             // brings every cohort to now_ns

// kernels.cpp
Status add_kernel(DeviceState& s, const KernelSpec& spec, bool with_profile, KernelId& out);
AloneProfile measure_alone(const DeviceSpec& device, const KernelSpec& spec);

}  // namespace tierline::fake
