// What a co-simulation takes and what it gives back. Everything is virtual time on the simulated device.
#pragma once

#include "tierline/fake/programs.hpp"
#include "tierline/region.hpp"

#include <cstdint>
#include <string>
#include <vector>

namespace tierline::sim {

// exact: the admission hears of every completion at its instant.
// polled: as in the live system: only of launches with an event behind them, at the poller's next turn, and of what a
// synchronisation of the client itself shows.
enum class Completions : std::uint8_t { exact = 0, polled = 1 };

// Where the admission's profiles come from.
enum class ProfileSource : std::uint8_t {
    exact = 0,  // what counters show of the kernel alone
    noisy,      // the same, each share off by an independent factor in 1 +- noise
    tagged,     // none; a library's shape gives FLOPs and bytes where the kernel has one
    none,       // nothing but what is seen: every kernel is learned
};

struct ClientSpec {
    fake::Program program;
    Priority priority = Priority::best_effort;
    Nanoseconds start_ns = 0;      // it joins then
    std::int64_t iterations = 0;   // it leaves after so many; 0 = stays to the end
};

struct Scenario {
    fake::DeviceSpec device{};
    std::vector<ClientSpec> clients;
    Config config{};               // `device` is filled in from the device above
    bool gated = true;             // false: no Tierline at all, plain streams of equal priority
    bool mps = true;               // false: clients are processes that time-slice
    // Green contexts: best-effort streams have so many SMs (to the device's granularity) to themselves, high-priority
    // ones the rest; 0 = all streams have all SMs.
    std::int32_t best_effort_sms = 0;
    Completions completions = Completions::exact;
    ProfileSource profiles = ProfileSource::exact;
    double noise = 0.2;            // of `noisy`
    std::uint64_t seed = 0;        // of arrivals, noise and the device's jitter
    Nanoseconds duration_ns = kSecond;
    Nanoseconds warmup_ns = 0;     // rates and latencies count from here on
    // Costs of the gate on the host: 95 ns and 540 to 880 ns by tests/bench_launch.cpp on the fake driver, whose event
    // record costs less than a real one.
    Nanoseconds gate_high_ns = 100;
    Nanoseconds gate_best_effort_ns = 1'000;
    Nanoseconds poll_ns = 20 * kMicrosecond;  // period of the poller
    Nanoseconds wake_ns = 5 * kMicrosecond;   // from an admission until the waiting thread runs
    bool keep_sums = false;        // return both sums over time
    // Limits that the true sums are judged by; 0 = those that the gate keeps.
    double judged_alpha = 0, judged_beta = 0;
};

struct ClientOutcome {
    std::string program;
    Priority priority{};
    double iterations = 0;         // done between warm-up and end; the last one in part
    double per_s = 0;
    std::vector<Nanoseconds> latencies_ns;  // servers: arrival to end of each request; others: time of each iteration
    std::int64_t unfinished = 0;   // requests that had arrived and not ended; their age is among the latencies
    Nanoseconds p50_ns = 0, p99_ns = 0, mean_ns = 0;
    ClientStatistics statistics{};
};

// Both sums of the kernels with resident blocks, from `at_ns` on: the device's truth.
struct SumsAt {
    Nanoseconds at_ns;
    double sm, bw;
    std::int32_t clients;
};

// How far the true sums went over the limits while launches [from, to) of the whole run were the newest.
struct ExcessWindow {
    std::int64_t from, to;
    double most;                   // largest excess of either sum
    Nanoseconds excess_ns, shared_ns;
};

struct Outcome {
    std::vector<ClientOutcome> clients;
    Nanoseconds end_ns = 0;
    bool stuck = false;            // nothing could happen any more although clients had work: a bug of the gate
    // Truth of the device over instants at which kernels of two or more clients ran.
    double shared_sm_peak = 0, shared_bw_peak = 0;
    Nanoseconds busy_ns = 0, shared_ns = 0, excess_ns = 0;
    double excess_most = 0;        // over the limits that are judged by
    std::int64_t launches = 0;     // that reached the device, a graph counts as one
    std::int64_t last_excess_launch = 0;  // `launches` when a sum was last over its limit; 0 = never
    std::vector<ExcessWindow> excess;     // by powers of two of `launches`
    double sm_used = 0, bw_used = 0;      // mean achieved use over the whole time
    // The admission's view.
    Ppm predicted_sm_peak_ppm = 0, predicted_bw_peak_ppm = 0;
    std::int64_t events = 0;       // recorded behind launches for the gate
    std::int64_t fences = 0;       // recorded by pollers
    std::vector<SumsAt> sums;
};

// Deterministic: the same scenario gives the same outcome. Throws std::invalid_argument for a scenario that cannot be
// run (a kernel that does not fit the device, more streams than the device or the region has).
Outcome simulate(const Scenario& scenario);

// Two to six clients, their kernels, streams, graphs, priorities and both limits drawn by `seed`; strict mode, exact
// profiles. Some clients come late, some leave early.
Scenario random_scenario(const fake::DeviceSpec& device, std::uint64_t seed,
                         Nanoseconds duration_ns = 10 * kMillisecond);

}  // namespace tierline::sim
