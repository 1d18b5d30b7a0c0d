#include "rng.hpp"
#include "tierline/sim/scenario.hpp"

#include <algorithm>
#include <cstdio>

namespace tierline::sim {

namespace {

constexpr Nanoseconds kLongestKernel = 400 * kMicrosecond;

// Any mix of a kernel's resources that fits the device, from a few blocks to several waves.
fake::KernelSpec random_kernel(const fake::DeviceSpec& device, Rng& rng, std::uint64_t seed, int number) {
    fake::KernelSpec spec{};
    std::snprintf(spec.name, sizeof spec.name, "random_%llx_%d", static_cast<unsigned long long>(seed), number);
    spec.unit = rng.chance(0.5) ? fake::Unit::tensor : fake::Unit::fp32;
    spec.grid[1] = spec.grid[2] = spec.block[1] = spec.block[2] = 1;
    spec.grid[0] = static_cast<std::uint32_t>(rng.log_uniform(1, 1000));
    spec.block[0] = static_cast<std::uint32_t>(32 * rng.integer(1, 16));
    spec.registers_per_thread = static_cast<std::int32_t>(rng.integer(16, 96));
    spec.dynamic_shared_bytes = rng.chance(0.5) ? 0 : static_cast<std::int32_t>(rng.integer(1, 48) * 1024);
    const double peak = spec.unit == fake::Unit::tensor ? device.tensor_flops_per_s : device.fp32_flops_per_s;
    const double block_s = rng.log_uniform(2e-6, 1e-4);
    // A block's share of its SM, as if it ran there by itself at most.
    spec.flops_per_block = peak / device.sms * block_s * rng.log_uniform(0.002, 0.5);
    spec.bytes_per_block = device.dram_bytes_per_s / device.sms * block_s * rng.log_uniform(0.002, 0.8);
    spec.l2_hit = rng.uniform(0.0, 0.6);
    spec.working_set_bytes = rng.log_uniform(1e5, 1e8);
    spec.compute_efficiency = rng.uniform(0.4, 0.95);
    spec.dram_efficiency = rng.uniform(0.6, 1.0);
    spec.saturating_threads = static_cast<std::int32_t>(rng.integer(128, 1024));
    const double alone_ns = double(fake::alone_profile(device, spec).duration_ns);
    if (alone_ns > double(kLongestKernel))
        spec.grid[0] = std::max(1u, static_cast<std::uint32_t>(spec.grid[0] * double(kLongestKernel) / alone_ns));
    return spec;
}

fake::Program random_program(const fake::DeviceSpec& device, Rng& rng, std::uint64_t seed, int number) {
    fake::Program program;
    program.name = "random " + std::to_string(seed) + "." + std::to_string(number);
    program.what = "drawn";
    program.streams = static_cast<std::int32_t>(rng.integer(1, 3));
    const auto kernels = static_cast<int>(rng.integer(1, 4));
    for (int i = 0; i < kernels; ++i) program.kernels.push_back(random_kernel(device, rng, seed, 16 * number + i));
    if (rng.chance(0.25)) {
        std::vector<std::uint32_t> nodes;
        for (std::int64_t i = rng.integer(2, 5); i > 0; --i)
            nodes.push_back(static_cast<std::uint32_t>(rng.integer(0, kernels - 1)));
        program.graphs.push_back(std::move(nodes));
    }
    const auto stream = [&] { return static_cast<std::uint16_t>(rng.integer(0, program.streams - 1)); };
    const auto host_ns = static_cast<Nanoseconds>(rng.log_uniform(500, 1e4));
    using fake::StepKind;
    for (std::int64_t i = rng.integer(3, 16); i > 0; --i) {
        fake::Step step{StepKind::launch, stream(), static_cast<std::uint32_t>(rng.integer(0, kernels - 1)), host_ns};
        if (!program.graphs.empty() && rng.chance(0.3)) {
            step.kind = StepKind::graph;
            step.index = 0;
        }
        program.loop.push_back(step);
        if (rng.chance(0.1)) program.loop.push_back({StepKind::synchronize, stream()});
    }
    program.loop.push_back({StepKind::synchronize_all, 0, 0, host_ns});
    program.loop.push_back({StepKind::end_iteration});
    if (rng.chance(0.3)) {
        program.kind = fake::ProgramKind::server;
        program.arrivals_per_s = rng.log_uniform(200, 5000);
    }
    return program;
}

}  // namespace

Scenario random_scenario(const fake::DeviceSpec& device, std::uint64_t seed, Nanoseconds duration_ns) {
    Rng rng(seed);
    Scenario scenario;
    scenario.device = device;
    scenario.seed = seed;
    scenario.config.mode = Mode::strict;
    scenario.config.alpha_ppm = static_cast<Ppm>(rng.integer(800'000, 1'000'000));
    scenario.config.beta_ppm = static_cast<Ppm>(rng.integer(800'000, 1'000'000));
    scenario.duration_ns = duration_ns;
    const std::int64_t clients = rng.integer(2, 6);
    for (int i = 0; i < clients; ++i) {
        ClientSpec client;
        client.program = random_program(device, rng, seed, i);
        client.priority = rng.chance(0.4) ? Priority::high : Priority::best_effort;
        client.start_ns = rng.chance(0.7) ? rng.integer(0, 200 * kMicrosecond) : rng.integer(0, duration_ns / 2);
        if (rng.chance(0.3)) client.iterations = rng.integer(1, 20);
        scenario.clients.push_back(std::move(client));
    }
    return scenario;
}

}  // namespace tierline::sim
