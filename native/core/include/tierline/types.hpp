// The nouns of the kernel tier. Shares of the device are integers in parts per million, so that sums are exact.
#pragma once

#include <cstdint>

namespace tierline {

using Nanoseconds = std::int64_t;
using Ppm = std::int32_t;  // parts per million of the device's peak

constexpr Ppm kWhole = 1'000'000;
constexpr Nanoseconds kMicrosecond = 1'000;
constexpr Nanoseconds kMillisecond = 1'000'000;
constexpr Nanoseconds kSecond = 1'000'000'000;

enum class Priority : std::uint8_t { high = 0, best_effort = 1 };

// strict: the sums are never exceeded, a high-priority launch may wait for the residue of what runs.
// latency: a high-priority launch never waits, any excess is counted.
enum class Mode : std::uint8_t { strict = 0, latency = 1 };

enum class PolicyName : std::uint8_t {
    interference = 0,  // groups within both limits, ours
    sequential,        // one client's kernels at a time
    free,              // no gate: plain streams
    orion,             // EuroSys'24: high priority first, best effort of the other bound class on few SMs, bounded depth
    reef,              // OSDI'22: best effort pads the SMs that high priority leaves
    tgs,               // NSDI'23: best effort's launch rate follows high priority's by AIMD
    lanes,             // semi-PD: shares of SMs per class
    pair,              // NanoFlow: at most one kernel per bound class
    gate,              // FlowPrefill: best effort pauses at a launch boundary while high priority works
};
constexpr int kPolicies = 9;

// Where a demand comes from, worst to best. A kernel is known from `roofline` on.
enum class Source : std::uint8_t { none = 0, learning, assumed, roofline, event, counters };

enum class BoundClass : std::uint8_t { unknown = 0, compute, memory };

// What a kernel uses when it runs alone.
struct Demand {
    Ppm sm_ppm = 0;               // share of the SMs' throughput
    Ppm bw_ppm = 0;               // share of the memory bandwidth
    std::int32_t sm_blocks = 0;   // SMs it occupies: min(SMs, ceil(blocks / occupancy))
    Nanoseconds duration_ns = 0;  // time alone
};

// Why a launch was admitted, or why it waits. Names are in names.cpp.
enum class Reason : std::uint8_t {
    none = 0,
    // admitted
    alone,            // no other client has work on the device or waits
    fits,             // the group stays within the limits
    never_waits,      // high priority in latency mode
    ungated,          // the policy lets everything through
    spared,           // over a limit, but the slowdown it costs high priority is within what is allowed (latency mode)
    forced,           // the longest wait was over
    bypassed,         // exempt: NCCL, cooperative, capture, a dependent launch
    overflowed,       // no room for it in the region: passed through
    // waits
    sm_limit,
    bw_limit,
    slowdown_limit,
    depth,            // enough of its own is in flight
    budget,           // best-effort work in flight would exceed its budget
    unknown_runs_alone,
    draining,         // an older launch is waiting for room
    turn,             // another client has the device
    high_priority_first,
    rate,             // tgs: no token
    lane,             // the class has used its share of SMs
    bound_class,      // a kernel of this bound class runs already
};
constexpr int kReasons = 21;

constexpr bool admits(Reason reason) { return reason >= Reason::alone && reason <= Reason::overflowed; }

// The device as the predictor knows it (from calibration or from driver attributes).
struct DeviceLimits {
    std::int32_t sms = 132;
    double flops_per_s = 0.0;  // dense peak of the fastest unit; 0 = unknown
    double bytes_per_s = 0.0;  // 0 = unknown
    std::int64_t memory_bytes = 0;
};

struct Config {
    PolicyName policy = PolicyName::interference;
    Mode mode = Mode::latency;
    Ppm alpha_ppm = 950'000;              // limit of the sum of sm_ppm: 1 less the profiles' error
    Ppm beta_ppm = 950'000;               // limit of the sum of bw_ppm
    double slowdown_limit = 1.03;         // latency mode: what best effort may cost high priority in time, as seen (losses.hpp)
    Nanoseconds budget_ns = 0;            // strict mode and orion: best-effort work in flight; 0 = budget_share of the high-priority iteration
    double budget_share = 0.025;          // Orion's depth
    std::int32_t depth = 16;              // launches in flight per stream while others have work
    std::int32_t samples_needed = 3;      // before an unknown kernel counts as known
    Nanoseconds drain_after_ns = 20 * kMillisecond;  // a launch older than this has the device drained for it
    Nanoseconds max_wait_ns = 10 * kSecond;          // then it is forced and counted
    Nanoseconds resolution_ns = 0;           // how late an end may be noticed (the pollers' period)
    Nanoseconds depth_ns = 20 * kMicrosecond; // work in flight per stream, as predicted, at which the next launch goes
    std::int32_t best_effort_lane_sms = 48;          // policy lanes
    DeviceLimits device;
};

}  // namespace tierline
