// The table of kernels: what is known of each key, learnt and corrected while programs run.
#include "demand.hpp"
#include "losses.hpp"
#include "running_set.hpp"

#include <algorithm>

namespace tierline {

namespace {

constexpr int kFullest = kMaxKernels * 3 / 4;  // beyond this, probing would get long: new keys stay unknown
constexpr Nanoseconds kLongest = 3600 * kSecond;  // a thousand of them in a queue are still a number

}  // namespace

// A row is written whole before its key is published and never moves, so this is safe without a lock.
int Admission::find_kernel(std::uint64_t key) const {
    for (int probe = 0; probe < kMaxKernels; ++probe) {
        const int row = static_cast<int>((key + static_cast<std::uint64_t>(probe)) % kMaxKernels);
        const std::uint64_t found = __atomic_load_n(&region_.kernels[row].key, __ATOMIC_ACQUIRE);
        if (found == key) return row;
        if (found == 0) return -1;
    }
    return -1;
}

int Admission::add_kernel(std::uint64_t key, const KernelFacts& facts) {
    const int existing = find_kernel(key);
    if (existing >= 0) return existing;
    if (region_.kernel_count >= kFullest) return -1;
    int row = static_cast<int>(key % kMaxKernels);
    while (region_.kernels[row].key != 0) row = (row + 1) % kMaxKernels;
    Kernel& kernel = region_.kernels[row];
    const std::size_t length = std::min(facts.name.size(), kernel.name.size() - 1);
    std::copy_n(facts.name.begin(), length, kernel.name.begin());
    kernel.name[length] = '\0';
    kernel.grid = facts.grid;
    kernel.block = facts.block;
    kernel.registers = facts.registers;
    kernel.smem_static_bytes = facts.smem_static_bytes;
    kernel.smem_dynamic_bytes = facts.smem_dynamic_bytes;
    kernel.occupancy = facts.occupancy;
    kernel.flops = facts.flops;
    kernel.bytes = facts.bytes;
    kernel.correction_sm = kernel.correction_bw = 1.0;
    kernel.harm = kHarmAtFirst;
    // Until it is known it counts as one that needs the whole device.
    kernel.demand = {kWhole, kWhole, region_.config.device.sms, 0};
    kernel.source = Source::none;
    ++region_.kernel_count;
    __atomic_store_n(&kernel.key, key, __ATOMIC_RELEASE);
    return row;
}

void Admission::set_profile(int row, const Demand& demand, Source source) {
    if (row < 0 || row >= kMaxKernels) return;
    Kernel& kernel = region_.kernels[row];
    kernel.demand = {std::clamp<Ppm>(demand.sm_ppm, 0, kWhole), std::clamp<Ppm>(demand.bw_ppm, 0, kWhole),
                     demand.sm_blocks, std::clamp<Nanoseconds>(demand.duration_ns, 0, kLongest)};
    if (kernel.demand.sm_blocks <= 0) kernel.demand.sm_blocks = occupied_sms(kernel, region_.config.device.sms);
    kernel.source = source;
    kernel.bound = bound_of(kernel.demand);
}

bool Admission::is_known(int row) const { return row >= 0 && region_.kernels[row].source > Source::learning; }

void Admission::learned(int row, Nanoseconds duration_ns) {
    if (row < 0 || row >= kMaxKernels || duration_ns <= 0) return;
    Kernel& kernel = region_.kernels[row];
    if (kernel.source >= Source::event) return;  // a profile was given
    duration_ns = std::min(duration_ns, kLongest);
    // The shortest sample: company that came in the middle only makes one longer.
    const Nanoseconds before_ns = kernel.demand.duration_ns;
    kernel.demand.duration_ns = kernel.samples == 0 ? duration_ns : std::min(before_ns, duration_ns);
    ++kernel.samples;
    if (kernel.samples >= region_.config.samples_needed) {
        estimate(kernel, region_.config.device);
    } else {
        kernel.source = Source::learning;
    }
}

}  // namespace tierline
