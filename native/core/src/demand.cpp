#include "demand.hpp"

#include <algorithm>
#include <cmath>

namespace tierline {

namespace {

// A third or so of the SMs saturates the memory of recent GPUs (on a 132-SM Hopper part a norm keeps 95 % of its speed
// on 48 SMs: measurements published with green-ctx by S. Mo), so one SM may draw this many times its share.
constexpr double kBandwidthPerSm = 2.75;

// Orion's classes: at 60 % of one peak a kernel is bound by it.
constexpr Ppm kBound = 600'000;

Ppm share(double value) { return static_cast<Ppm>(std::lround(std::clamp(value, 0.0, 1.0) * kWhole)); }

constexpr std::uint64_t kFnvBasis = 0xcbf29ce484222325ULL;
constexpr std::uint64_t kFnvPrime = 0x100000001b3ULL;

void mix(std::uint64_t& hash, std::uint64_t value) {
    hash = (hash ^ value) * kFnvPrime;
    hash ^= hash >> 32;
}

}  // namespace

std::uint64_t kernel_key(std::string_view name, const std::array<std::uint32_t, 3>& grid,
                         const std::array<std::uint32_t, 3>& block, std::uint32_t smem_dynamic_bytes,
                         std::uint64_t shape) {
    std::uint64_t hash = kFnvBasis;
    for (const char letter : name) hash = (hash ^ static_cast<unsigned char>(letter)) * kFnvPrime;
    for (const std::uint32_t extent : grid) mix(hash, extent);
    for (const std::uint32_t extent : block) mix(hash, extent);
    mix(hash, smem_dynamic_bytes);
    mix(hash, shape);
    return hash == 0 ? 1 : hash;
}

std::int32_t occupied_sms(const Kernel& kernel, std::int32_t sms) {
    const double blocks = double(kernel.grid[0]) * kernel.grid[1] * kernel.grid[2];
    const double wanted = std::ceil(blocks / std::max(1u, kernel.occupancy));
    return static_cast<std::int32_t>(std::clamp(wanted, 1.0, double(std::max(1, sms))));
}

BoundClass bound_of(const Demand& demand) {
    if (demand.sm_ppm >= kBound && demand.sm_ppm >= demand.bw_ppm) return BoundClass::compute;
    if (demand.bw_ppm >= kBound) return BoundClass::memory;
    return BoundClass::unknown;
}

void estimate(Kernel& kernel, const DeviceLimits& device) {
    Demand& demand = kernel.demand;
    demand.sm_blocks = occupied_sms(kernel, device.sms);
    const double seconds = static_cast<double>(demand.duration_ns) / static_cast<double>(kSecond);
    const bool has_roofline = kernel.flops + kernel.bytes > 0.0 && device.flops_per_s > 0.0 && device.bytes_per_s > 0.0;
    if (has_roofline && seconds > 0.0) {
        demand.sm_ppm = share(kernel.flops / (seconds * device.flops_per_s));
        demand.bw_ppm = share(kernel.bytes / (seconds * device.bytes_per_s));
        kernel.source = Source::roofline;
    } else {
        const double occupied = static_cast<double>(demand.sm_blocks) / std::max(1, device.sms);
        demand.sm_ppm = share(occupied);
        demand.bw_ppm = share(kBandwidthPerSm * occupied);
        kernel.source = Source::assumed;
    }
    demand.sm_ppm = share(demand.sm_ppm * kernel.correction_sm / kWhole);
    demand.bw_ppm = share(demand.bw_ppm * kernel.correction_bw / kWhole);
    kernel.bound = bound_of(demand);
}

}  // namespace tierline
