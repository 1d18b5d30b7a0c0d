#include "profiles.hpp"

#include "rng.hpp"

#include <algorithm>
#include <cmath>

namespace tierline::sim {

namespace {

// Rounded up, so that a sum of predictions is never below the sum of what they stand for.
Ppm ppm(double share) { return static_cast<Ppm>(std::min<double>(kWhole, std::ceil(share * kWhole))); }

Demand demand_of(const fake::AloneProfile& alone) {
    return {ppm(alone.sm_util), ppm(alone.bw_util), alone.sm_blocks, alone.duration_ns};
}

std::uint64_t shape_hash(const fake::KernelSpec& spec) {
    std::uint64_t hash = 0;
    for (const std::int64_t extent : spec.shape) hash = hash * 0x100000001b3ULL + static_cast<std::uint64_t>(extent);
    return hash;
}

KernelFacts facts_of(const fake::DeviceSpec& device, const fake::KernelSpec& spec, bool tagged) {
    KernelFacts facts;
    facts.name = spec.name;
    std::copy_n(spec.grid, 3, facts.grid.begin());
    std::copy_n(spec.block, 3, facts.block.begin());
    facts.registers = static_cast<std::uint32_t>(spec.registers_per_thread);
    facts.smem_static_bytes = static_cast<std::uint32_t>(spec.static_shared_bytes);
    facts.smem_dynamic_bytes = static_cast<std::uint32_t>(spec.dynamic_shared_bytes);
    facts.occupancy = static_cast<std::uint32_t>(std::max(1, fake::occupancy(device, spec)));
    const bool matrix = spec.family == fake::Family::gemm || spec.family == fake::Family::skinny_gemm;
    if (tagged && matrix && spec.shape[0] > 0) {
        const double m = double(spec.shape[0]), n = double(spec.shape[1]), k = double(spec.shape[2]);
        const double batch = std::max(1.0, double(spec.shape[3]));
        facts.flops = 2.0 * m * n * k * batch;
        facts.bytes = spec.element_bytes * batch * (m * k + k * n + m * n);
    }
    return facts;
}

// A kernel's error belongs to the kernel: the same for every client that launches it.
void disturb(Demand& demand, std::uint64_t key, const Scenario& scenario) {
    Rng rng(scenario.seed ^ key);
    const auto off = [&](Ppm share) {
        return static_cast<Ppm>(std::min<double>(kWhole, share * rng.uniform(1 - scenario.noise, 1 + scenario.noise)));
    };
    demand.sm_ppm = off(demand.sm_ppm);
    demand.bw_ppm = off(demand.bw_ppm);
}

// Kernels of one key that differ in their data only (strides, cache hits) share a row: a profile holds the largest seen.
int add(Admission& admission, std::uint64_t key, const KernelFacts& facts, Demand demand, const Scenario& scenario) {
    const bool given = scenario.profiles == ProfileSource::exact || scenario.profiles == ProfileSource::noisy;
    const bool is_new = admission.find_kernel(key) < 0;
    const int row = admission.add_kernel(key, facts);
    if (row < 0 || !given || demand.duration_ns == 0) return row;  // a kernel that spins has no profile
    if (scenario.profiles == ProfileSource::noisy) disturb(demand, key, scenario);
    if (!is_new) {
        const Demand& other = admission.region().kernels[static_cast<std::size_t>(row)].demand;
        demand = {std::max(demand.sm_ppm, other.sm_ppm), std::max(demand.bw_ppm, other.bw_ppm),
                  std::max(demand.sm_blocks, other.sm_blocks), std::max(demand.duration_ns, other.duration_ns)};
    }
    admission.set_profile(row, demand, Source::counters);
    return row;
}

}  // namespace

ProfileRows add_profiles(Admission& admission, const fake::Device& device, const Scenario& scenario,
                         const fake::Program& program, const std::vector<fake::KernelId>& registered) {
    ProfileRows rows;
    const bool tagged = scenario.profiles != ProfileSource::none;
    for (std::size_t i = 0; i < program.kernels.size(); ++i) {
        const KernelFacts facts = facts_of(device.spec(), program.kernels[i], tagged);
        const std::uint64_t key =
            kernel_key(facts.name, facts.grid, facts.block, facts.smem_dynamic_bytes, shape_hash(program.kernels[i]));
        rows.kernels.push_back(add(admission, key, facts, demand_of(*device.alone_profile(registered[i])), scenario));
    }
    for (std::size_t g = 0; g < program.graphs.size(); ++g) {
        // A graph is one unit: at any instant it asks for what its most demanding node does.
        Demand whole;
        for (const std::uint32_t node : program.graphs[g]) {
            const Demand one = demand_of(*device.alone_profile(registered[node]));
            whole.sm_ppm = std::max(whole.sm_ppm, one.sm_ppm);
            whole.bw_ppm = std::max(whole.bw_ppm, one.bw_ppm);
            whole.sm_blocks = std::max(whole.sm_blocks, one.sm_blocks);
            whole.duration_ns += one.duration_ns + device.spec().graph_gap_ns;
        }
        const std::string name = "graph " + std::to_string(g) + " of " + program.name;
        KernelFacts facts;
        facts.name = name;
        facts.grid[0] = static_cast<std::uint32_t>(std::max(1, whole.sm_blocks));
        rows.graphs.push_back(add(admission, kernel_key(name, facts.grid, facts.block, 0), facts, whole, scenario));
    }
    return rows;
}

}  // namespace tierline::sim
