// The co-simulation itself: its clock, its host threads, its figures. Every policy comes to an end on it.
#include "check.hpp"
#include "tierline/admission.hpp"
#include "tierline/sim/scenario.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <stdexcept>

using namespace tierline;
using fake::StepKind;

namespace {

const fake::DeviceSpec kDevice = fake::device_spec(fake::Gpu::h200);

// One kernel on some SMs, `block_ns` of latency a block and little else: its time is known beforehand.
fake::KernelSpec latency_bound(const char* name, std::uint32_t blocks, std::int64_t block_ns) {
    fake::KernelSpec spec{};
    std::snprintf(spec.name, sizeof spec.name, "%s", name);
    spec.grid[0] = blocks;
    spec.grid[1] = spec.grid[2] = spec.block[1] = spec.block[2] = 1;
    spec.block[0] = 128;
    spec.registers_per_thread = 32;
    spec.flops_per_block = 1000;
    spec.bytes_per_block = 1000;
    spec.compute_efficiency = spec.dram_efficiency = 1.0;
    spec.saturating_threads = 128;
    spec.block_floor_ns = block_ns;
    return spec;
}

fake::Program loop_of(const char* name, const fake::KernelSpec& kernel, Nanoseconds host_ns) {
    fake::Program program;
    program.name = name;
    program.kernels = {kernel};
    program.loop = {{StepKind::launch, 0, 0, host_ns}, {StepKind::synchronize}, {StepKind::end_iteration}};
    return program;
}

sim::Scenario scenario_of(std::vector<sim::ClientSpec> clients) {
    sim::Scenario scenario;
    scenario.device = kDevice;
    scenario.device.launch_jitter_ns = 0;
    scenario.device.work_jitter = 0;
    scenario.clients = std::move(clients);
    scenario.duration_ns = 20 * kMillisecond;
    return scenario;
}

bool refuses(const sim::Scenario& scenario) {
    try {
        sim::simulate(scenario);
    } catch (const std::invalid_argument&) {
        return true;
    }
    return false;
}

// An iteration is host time, gate, launch latency and the kernel; alone, the gate costs its time and nothing else.
void test_time_of_an_iteration() {
    const fake::Program program = loop_of("alone", latency_bound("k", 10, 50 * kMicrosecond), 5 * kMicrosecond);
    const Nanoseconds kernel_ns = fake::alone_profile(kDevice, program.kernels[0]).duration_ns;
    sim::Scenario scenario = scenario_of({{program, Priority::high}});
    scenario.gated = false;
    const sim::Outcome plain = sim::simulate(scenario);
    const Nanoseconds least_ns = 5 * kMicrosecond + kernel_ns + kDevice.launch_latency_ns;
    CHECK(plain.clients[0].p50_ns >= least_ns);
    CHECK(plain.clients[0].p50_ns <= least_ns + 5 * kMicrosecond);
    scenario.gated = true;
    const sim::Outcome gated = sim::simulate(scenario);
    CHECK(gated.clients[0].p50_ns == plain.clients[0].p50_ns + scenario.gate_high_ns);
    CHECK(gated.clients[0].statistics.waited == 0);
    CHECK(gated.events == 0 && gated.fences == 0);
    const double expected = double(scenario.duration_ns) / double(gated.clients[0].p50_ns);
    CHECK(std::abs(gated.clients[0].iterations - expected) < 1.0);
}

// A server's latency runs from the arrival; what has not ended counts with its age.
void test_server() {
    fake::Program program = loop_of("server", latency_bound("k", 10, 400 * kMicrosecond), 5 * kMicrosecond);
    program.kind = fake::ProgramKind::server;
    program.arrivals_per_s = 100;
    sim::Scenario scenario = scenario_of({{program, Priority::high}});
    scenario.duration_ns = kSecond;
    const sim::Outcome calm = sim::simulate(scenario);
    CHECK(calm.clients[0].iterations > 60 && calm.clients[0].iterations < 140);
    CHECK(calm.clients[0].p50_ns < 500 * kMicrosecond);
    scenario.clients[0].program.arrivals_per_s = 5000;  // twice what it can do
    const sim::Outcome late = sim::simulate(scenario);
    CHECK(late.clients[0].unfinished > 1000);
    CHECK(late.clients[0].p99_ns > 300 * kMillisecond);
    CHECK(late.clients[0].per_s < 2500);
}

void test_same_seed_same_outcome() {
    for (const std::uint64_t seed : {3u, 4u}) {
        const sim::Scenario scenario = sim::random_scenario(kDevice, seed);
        const sim::Outcome a = sim::simulate(scenario);
        const sim::Outcome b = sim::simulate(scenario);
        CHECK(a.launches == b.launches && a.busy_ns == b.busy_ns && a.events == b.events);
        for (std::size_t i = 0; i < a.clients.size(); ++i)
            CHECK(a.clients[i].latencies_ns == b.clients[i].latencies_ns);
    }
}

// Two clients that ask for the whole device: one at a time, both go on; a high-priority one is not held by the other.
void test_policies_let_everybody_go_on() {
    fake::KernelSpec full = latency_bound("full", 2000, 3 * kMicrosecond);
    full.flops_per_block = 4e6;  // about 0.13 ms
    const fake::Program high = loop_of("high", full, 20 * kMicrosecond);
    fake::KernelSpec other = full;
    other.name[0] = 'g';
    const fake::Program best_effort = loop_of("best effort", other, 3 * kMicrosecond);
    for (int policy = 0; policy < kPolicies; ++policy) {
        for (const sim::Completions completions : {sim::Completions::exact, sim::Completions::polled}) {
            for (const sim::ProfileSource source : {sim::ProfileSource::exact, sim::ProfileSource::none}) {
                sim::Scenario scenario =
                    scenario_of({{high, Priority::high}, {best_effort, Priority::best_effort, 0, 0}});
                scenario.duration_ns = 30 * kMillisecond;
                scenario.config.policy = static_cast<PolicyName>(policy);
                scenario.completions = completions;
                scenario.profiles = source;
                const sim::Outcome outcome = sim::simulate(scenario);
                CHECK(!outcome.stuck);
                CHECK(outcome.clients[0].iterations > 40);
                CHECK(outcome.clients[0].statistics.forced == 0);
            }
        }
    }
}

// What fits goes at once: its thread never sleeps, so the time to wake one does not show.
void test_who_fits_never_sleeps() {
    const fake::Program high = loop_of("high", latency_bound("k", 10, 20 * kMicrosecond), 5 * kMicrosecond);
    const fake::Program other = loop_of("other", latency_bound("l", 10, 30 * kMicrosecond), 5 * kMicrosecond);
    for (const Mode mode : {Mode::strict, Mode::latency}) {
        sim::Scenario scenario = scenario_of({{high, Priority::high}, {other, Priority::high}});
        scenario.config.mode = mode;
        scenario.wake_ns = kMillisecond;
        const sim::Outcome outcome = sim::simulate(scenario);
        for (const sim::ClientOutcome& client : outcome.clients) {
            CHECK(client.p99_ns < 100 * kMicrosecond);
            CHECK(client.statistics.waited == 0);
        }
        CHECK(outcome.shared_ns > kMillisecond);
    }
}

// Streams on lanes of SMs: who is confined gets slower, and does not touch the other.
void test_lanes() {
    fake::KernelSpec wide = latency_bound("wide", 4000, 3 * kMicrosecond);
    const fake::Program program = loop_of("wide", wide, kMicrosecond);
    sim::Scenario scenario = scenario_of({{program, Priority::best_effort}});
    const double whole = sim::simulate(scenario).clients[0].per_s;
    scenario.best_effort_sms = 44;
    const double third = sim::simulate(scenario).clients[0].per_s;
    CHECK(third < 0.6 * whole && third > 0.2 * whole);
}

// A client that leaves gives back what it held.
void test_leaving() {
    const fake::Program program = loop_of("short", latency_bound("k", 10, 20 * kMicrosecond), kMicrosecond);
    sim::Scenario scenario =
        scenario_of({{program, Priority::best_effort, 0, 3}, {program, Priority::best_effort, 0, 5}});
    const sim::Outcome outcome = sim::simulate(scenario);
    CHECK(!outcome.stuck);
    CHECK(outcome.end_ns < scenario.duration_ns);
    CHECK(outcome.clients[0].latencies_ns.size() == 3 && outcome.clients[1].latencies_ns.size() == 5);
}

void test_bad_scenarios() {
    const fake::Program good = loop_of("good", latency_bound("k", 1, kMicrosecond), 0);
    CHECK(refuses(scenario_of({})));
    fake::Program program = good;
    program.loop[0].index = 7;
    CHECK(refuses(scenario_of({{program}})));
    program = good;
    program.loop[0].stream = 3;
    CHECK(refuses(scenario_of({{program}})));
    program = good;
    program.loop = {{StepKind::end_iteration}};
    CHECK(refuses(scenario_of({{program}})));
    program = good;
    program.kernels[0].dynamic_shared_bytes = 1 << 24;
    CHECK(refuses(scenario_of({{program}})));
    program = good;
    program.kind = fake::ProgramKind::server;
    CHECK(refuses(scenario_of({{program}})));
    sim::Scenario scenario = scenario_of({{good}});
    scenario.warmup_ns = scenario.duration_ns;
    CHECK(refuses(scenario));
}

// The sums over time are those whose peaks are told.
void test_kept_sums() {
    sim::Scenario scenario = sim::random_scenario(kDevice, 3);
    scenario.config.policy = PolicyName::free;
    scenario.keep_sums = true;
    const sim::Outcome outcome = sim::simulate(scenario);
    double sm = 0, bw = 0;
    Nanoseconds last_ns = -1;
    for (const sim::SumsAt& at : outcome.sums) {
        CHECK(at.at_ns >= last_ns);
        last_ns = at.at_ns;
        if (at.clients < 2) continue;
        sm = std::max(sm, at.sm);
        bw = std::max(bw, at.bw);
    }
    CHECK(outcome.shared_ns > 0);
    CHECK(sm >= outcome.shared_sm_peak && bw >= outcome.shared_bw_peak);
}

}  // namespace

int main() {
    test_time_of_an_iteration();
    test_server();
    test_same_seed_same_outcome();
    test_policies_let_everybody_go_on();
    test_who_fits_never_sleeps();
    test_lanes();
    test_leaving();
    test_bad_scenarios();
    test_kept_sums();
    return check_result();
}
