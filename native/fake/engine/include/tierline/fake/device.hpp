// The fake GPU: a discrete-event device in virtual nanoseconds.
//
// All state is one trivially copyable, position-independent DeviceState (indices only), so it can lie in memory shared
// by several processes; the caller locks around every call. `Device` is a thin handle with the behaviour. Nothing here
// throws, allocates or calls the host: what does not fit gives a Status.
//
// Physics, in short (details in the sources): blocks take registers, shared memory, threads and slots of real SMs and
// keep them until they end; the block scheduler serves streams by priority, then by arrival, head of line first, and
// never preempts (Amert et al., RTSS'17); a block's speed is the least of its compute, SM-draw, L2, DRAM and latency
// limits; compute is shared within an SM, L2 and DRAM across the device (max-min water-filling).
#pragma once

#include <cstdint>
#include <memory>

#include "tierline/fake/specs.hpp"

namespace tierline::fake {

struct DeviceState;  // device_state.hpp; several MiB

using StreamId = std::int32_t;
using EventId = std::int32_t;
using KernelId = std::int32_t;
using ContextId = std::int32_t;
using OpId = std::int64_t;                 // increases with every enqueued operation of the device; 0 is none

constexpr std::int64_t never = INT64_MAX;

enum class Status : std::int32_t {
    ok = 0,
    streams_full,
    operations_full,
    kernels_full,
    events_full,
    contexts_full,
    bad_stream,
    bad_event,
    bad_kernel,
    bad_context,
    bad_argument,
    too_large, // one block does not fit an SM, or a cooperative grid does not fit the device
};
const char* status_text(Status status);

enum class Direction : std::uint8_t { host_to_device, device_to_host, device_to_device, fill };

enum class OpKind : std::uint8_t { kernel, copy, event, wait, host };

struct StreamOptions {
    std::int32_t priority = 0;             // lower is more urgent, as in CUDA
    bool blocking = false;                 // synchronises with the context's legacy stream
    bool legacy = false;                   // is the context's legacy default stream (at most one a context)
    std::int32_t first_sm = 0;             // lane of SMs (green context): first_sm and sm_count are multiples of
    std::int32_t sm_count = 0;             // lane_granularity (the last lane may run to the end); 0: all SMs
    std::uint32_t client = 0;              // whose kernels these are, for the truth; 0: the context's number + 1
};

struct Enqueued {
    Status status = Status::ok;
    OpId op = 0;
};

// An operation that ended; for OpKind::host one that began (the stream goes on after host_done).
struct Completion {
    OpId op;
    StreamId stream;
    OpKind kind;
    KernelId kernel;                       // -1 unless a kernel
    std::uint32_t client;
    std::int64_t submitted_ns, start_ns, end_ns;
    std::uint64_t cookie;                  // of enqueue_host, or as given to enqueue_kernel
};

struct TrueSums {
    double sm_sum, bw_sum;                 // over kernels with resident blocks, each as if alone
    std::int32_t kernels, clients;         // that have resident blocks
};

struct Truth {
    double sm_peak, bw_peak;               // overall
    double shared_sm_peak, shared_bw_peak; // over instants at which kernels of two or more clients run
    std::int64_t busy_ns;                  // some kernel runs
    std::int64_t shared_ns;                // kernels of two or more clients run
    std::int64_t excess_ns;                // of shared_ns: a sum is above 1
    double sm_integral, bw_integral;       // achieved use over time: util * ns
    std::int64_t kernels_done;
    std::int64_t completions_lost, samples_lost;
};

struct TruthSample {
    std::int64_t at_ns;
    double sm_sum, bw_sum;
    std::int32_t kernels, clients;
};

class Device {
public:
    explicit Device(DeviceState& state) : s_(&state) {}

    // Must be the first call on fresh memory. `mps`: kernels of several contexts run together; otherwise they time-slice.
    void reset(const DeviceSpec& spec, std::uint64_t seed, bool mps);
    const DeviceSpec& spec() const;
    std::int64_t now_ns() const;

    Status create_context(ContextId& out);
    Status destroy_context(ContextId context);       // drops its streams and all their work at once (a process died)
    Status create_stream(ContextId context, const StreamOptions& options, StreamId& out);
    Status destroy_stream(StreamId stream);          // queued work still runs; the number is reused after it
    Status create_event(EventId& out);
    Status destroy_event(EventId event);
    // Equal specs give the same number. The alone profile is computed here, once.
    Status register_kernel(const KernelSpec& spec, KernelId& out);
    const KernelSpec* kernel(KernelId kernel) const;        // null for a bad number
    const AloneProfile* alone_profile(KernelId kernel) const;

    // `now` is the caller's time: the device first advances to it; a time in the past counts as the device's time.
    Enqueued enqueue_kernel(StreamId stream, KernelId kernel, std::int64_t now, std::uint64_t cookie = 0);
    // Nodes run in order with graph_gap_ns between them; gives the last node's operation. All or nothing.
    Enqueued enqueue_graph(StreamId stream, const KernelId* nodes, std::int32_t count, std::int64_t now,
                           std::uint64_t cookie = 0);
    Enqueued enqueue_copy(StreamId stream, std::int64_t bytes, Direction direction, std::int64_t now);
    Enqueued enqueue_event(StreamId stream, EventId event, std::int64_t now);
    Enqueued enqueue_wait(StreamId stream, EventId event, std::int64_t now);   // waits for the latest record so far
    Enqueued enqueue_host(StreamId stream, std::uint64_t cookie, std::int64_t now);
    Status host_done(StreamId stream, std::int64_t now);   // the host operation at the stream's head has ended
    void spin_post(std::uint32_t token, std::int64_t now);

    std::int64_t next_time() const;                  // of the next event; `never` when only the outside can go on
    void advance(std::int64_t to);                   // handles every event up to and at `to`; now_ns() == to
    bool poll(Completion& out); // oldest completion not yet polled (a ring: see Truth.completions_lost)

    bool idle(StreamId stream) const;                // no operation queued or running
    bool device_idle() const;
    bool context_idle(ContextId context) const;
    OpId completed(StreamId stream) const;           // every operation of the stream up to this one has ended
    OpId submitted(StreamId stream) const;           // the latest enqueued in it
    bool event_done(EventId event) const;            // its latest record has completed, or it was never recorded
    std::int64_t event_time_ns(EventId event) const; // when its latest record completed; -1 before

    TrueSums true_sums() const;
    const Truth& truth() const;
    void clear_truth();
    void log_truth(bool on);                         // one sample whenever the sums change
    bool poll_sample(TruthSample& out);
    // Blocks resident now, of one kernel number or (-1) of all; and the use of one SM's resources.
    std::int64_t resident_blocks(KernelId kernel) const;
    struct SmUse { std::int32_t registers, shared_bytes, threads, blocks; };
    SmUse sm_use(std::int32_t sm) const;

private:
    DeviceState* s_;
};

std::size_t device_state_bytes();
struct DeviceStateDeleter { void operator()(DeviceState* state) const; };
using DeviceStatePtr = std::unique_ptr<DeviceState, DeviceStateDeleter>;
// Private memory for one device (a simulation); shared memory users map device_state_bytes() of zeros themselves.
DeviceStatePtr new_device_state();

// The profile of a kernel alone on an idle device of this spec, by running it there. Thread safe.
AloneProfile alone_profile(const DeviceSpec& device, const KernelSpec& kernel);

}  // namespace tierline::fake
