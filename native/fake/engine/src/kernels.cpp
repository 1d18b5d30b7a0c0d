// Kernel numbers: what a spec means on this device, and its profile alone.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>

#include "device_state.hpp"

namespace tierline::fake {
namespace {

// A copy whose padding is zero, so that equal specs are equal bytes.
KernelSpec canonical(const KernelSpec& k) {
    KernelSpec c;
    std::memset(static_cast<void*>(&c), 0, sizeof c);
    for (int i = 0; i + 1 < max_name && k.name[i] != 0; ++i) c.name[i] = k.name[i];
    c.family = k.family;
    c.unit = k.unit;
    c.spin = k.spin;
    c.cooperative = k.cooperative;
    std::copy(std::begin(k.grid), std::end(k.grid), c.grid);
    std::copy(std::begin(k.block), std::end(k.block), c.block);
    c.registers_per_thread = k.registers_per_thread;
    c.static_shared_bytes = k.static_shared_bytes;
    c.dynamic_shared_bytes = k.dynamic_shared_bytes;
    c.flops_per_block = k.flops_per_block;
    c.bytes_per_block = k.bytes_per_block;
    c.l2_hit = k.l2_hit;
    c.working_set_bytes = k.working_set_bytes;
    c.compute_efficiency = k.compute_efficiency;
    c.dram_efficiency = k.dram_efficiency;
    c.saturating_threads = k.saturating_threads;
    c.block_floor_ns = k.block_floor_ns;
    std::copy(std::begin(k.shape), std::end(k.shape), c.shape);
    c.element_bytes = k.element_bytes;
    c.spin_token = k.spin_token;
    c.post_token = k.post_token;
    return c;
}

std::uint64_t hash_of(const KernelSpec& k) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(&k);
    std::uint64_t h = 1469598103934665603ULL;                       // FNV-1a
    for (std::size_t i = 0; i < sizeof k; ++i) h = (h ^ bytes[i]) * 1099511628211ULL;
    return h;
}

bool share(double x) { return x >= 0 && x <= 1; }                   // false for NaN too

bool sensible(const DeviceSpec& d, const KernelSpec& k) {
    const double threads = double(k.block[0]) * k.block[1] * k.block[2];
    const double blocks = double(k.grid[0]) * k.grid[1] * k.grid[2];
    return threads >= 1 && threads <= d.max_threads_per_block && blocks >= 1 && blocks < 4e15 &&
           k.registers_per_thread >= 0 && k.registers_per_thread <= 255 && k.static_shared_bytes >= 0 &&
           k.dynamic_shared_bytes >= 0 && k.flops_per_block >= 0 && std::isfinite(k.flops_per_block) &&
           k.bytes_per_block >= 0 && std::isfinite(k.bytes_per_block) && share(k.l2_hit) && k.working_set_bytes >= 0 &&
           std::isfinite(k.working_set_bytes) && share(k.compute_efficiency) && k.compute_efficiency > 0 &&
           share(k.dram_efficiency) && k.dram_efficiency > 0 && k.saturating_threads >= 0 && k.block_floor_ns >= 0 &&
           k.block_floor_ns < 1'000'000'000'000 && k.spin_token < max_tokens && k.post_token < max_tokens &&
           (k.spin == Spin::none || k.spin_token != 0);
}

int rounded_threads(const KernelSpec& k) { return (threads_of(k) + 31) / 32 * 32; }

int block_registers(const DeviceSpec& d, const KernelSpec& k) {
    const int per_warp =
        (k.registers_per_thread * 32 + d.register_granularity - 1) / d.register_granularity * d.register_granularity;
    return per_warp * (rounded_threads(k) / 32);
}

int block_shared(const DeviceSpec& d, const KernelSpec& k) {
    const std::int64_t own = std::int64_t{k.static_shared_bytes} + k.dynamic_shared_bytes;
    if (own > d.shared_bytes_per_block) return std::numeric_limits<int>::max();
    const int reserved = d.compute_major >= 8 ? 1024 : 0;            // the driver's share of each block since Ampere
    return static_cast<int>((own + reserved + 127) / 128 * 128);
}

}  // namespace

std::int32_t occupancy(const DeviceSpec& d, const KernelSpec& k) {
    int n = std::min(d.blocks_per_sm, d.threads_per_sm / std::max(1, rounded_threads(k)));
    if (const int r = block_registers(d, k); r > 0) n = std::min(n, d.registers_per_sm / r);
    if (const int m = block_shared(d, k); m > 0) n = std::min(n, d.shared_bytes_per_sm / m);
    return n;
}

KernelSpec fitted(const DeviceSpec& d, KernelSpec kernel) {
    const int most = d.shared_bytes_per_block - kernel.static_shared_bytes;
    kernel.dynamic_shared_bytes = std::max(0, std::min(kernel.dynamic_shared_bytes, most));
    return kernel;
}

Status add_kernel(DeviceState& s, const KernelSpec& given, bool with_profile, KernelId& out) {
    const DeviceSpec& d = s.spec;
    const KernelSpec spec = canonical(given);
    if (!sensible(d, spec)) return Status::bad_argument;
    const std::uint64_t hash = hash_of(spec);
    std::uint32_t slot = hash % kernel_hash_slots;
    for (; s.kernel_slots[slot] != 0; slot = (slot + 1) % kernel_hash_slots) {
        const KernelEntry& e = s.kernels[s.kernel_slots[slot] - 1];
        if (e.hash == hash && std::memcmp(&e.spec, &spec, sizeof spec) == 0) {
            out = s.kernel_slots[slot] - 1;
            return Status::ok;
        }
    }
    const int fits = occupancy(d, spec);
    if (fits == 0) return Status::too_large;
    if (s.kernel_count == max_kernels) return Status::kernels_full;

    KernelEntry& e = s.kernels[s.kernel_count];
    e = KernelEntry{};
    e.spec = spec;
    e.hash = hash;
    e.blocks = blocks_of(spec);
    e.block_registers = block_registers(d, spec);
    e.block_shared = block_shared(d, spec);
    e.block_threads = rounded_threads(spec);
    e.occupancy = fits;
    const double infinity = std::numeric_limits<double>::infinity();
    e.saturating_blocks = std::max(1.0, double(spec.saturating_threads) / e.block_threads);
    const double peak =
        (spec.unit == Unit::tensor ? d.tensor_flops_per_s : d.fp32_flops_per_s) / d.sms * 1e-9; // per SM and ns
    const double use = spec.flops_per_block / peak;
    (spec.unit == Unit::tensor ? e.tensor_use : e.fp32_use) = use;
    e.sm_compute_rate = use > 0 ? spec.compute_efficiency / use : infinity;
    e.draw_use = spec.bytes_per_block / (d.sm_bytes_per_s * 1e-9);
    e.sm_draw_rate = e.draw_use > 0 ? 1 / e.draw_use : infinity;
    // 200 ns: no block is over sooner, whatever it does (a few hundred cycles from its first to its last instruction).
    e.floor_rate = 1.0 / double(std::max<std::int64_t>(200, spec.block_floor_ns));
    if (with_profile) e.alone = measure_alone(d, spec);
    out = s.kernel_count++;
    s.kernel_slots[slot] = out + 1;
    return Status::ok;
}

AloneProfile measure_alone(const DeviceSpec& device, const KernelSpec& spec) {
    // A scratch device for each thread; reset is cheap because fresh slots are counted, not cleared.
    thread_local DeviceStatePtr scratch = new_device_state();
    DeviceSpec steady = device;
    steady.launch_jitter_ns = 0;
    steady.work_jitter = 0;
    Device alone(*scratch);
    alone.reset(steady, 0, true);
    AloneProfile p{};
    KernelId kernel = 0;
    ContextId context = 0;
    StreamId stream = 0;
    KernelSpec released = spec;
    released.spin = Spin::none;
    released.cooperative = false;
    if (add_kernel(*scratch, released, false, kernel) != Status::ok) return p;
    if (alone.create_context(context) != Status::ok || alone.create_stream(context, {}, stream) != Status::ok) return p;
    alone.enqueue_kernel(stream, kernel, 0);
    Completion done{};
    while (!alone.poll(done)) {
        const std::int64_t t = alone.next_time();
        if (t == never) return p;
        alone.advance(t);
    }
    const KernelEntry& e = scratch->kernels[kernel];
    p.occupancy_blocks = e.occupancy;
    p.sm_blocks =
        static_cast<std::int32_t>(std::min<std::int64_t>(device.sms, (e.blocks + e.occupancy - 1) / e.occupancy));
    p.waves = double(e.blocks) / (double(e.occupancy) * device.sms);
    p.flops = double(e.blocks) * spec.flops_per_block;
    p.dram_bytes = double(e.blocks) * spec.bytes_per_block * (1 - spec.l2_hit);
    if (spec.spin != Spin::none) {
        // It polls at its compute efficiency until released, for an unknown time.
        const double resident = std::min(double(e.occupancy), std::max(1.0, double(e.blocks) / device.sms));
        const double busy_sms = std::min(double(device.sms), double(e.blocks));
        p.sm_util = spec.compute_efficiency * std::min(1.0, resident / e.saturating_blocks) * busy_sms / device.sms;
        return p;
    }
    p.duration_ns = done.end_ns - done.start_ns;
    const double seconds = double(p.duration_ns) * 1e-9;
    p.sm_util = p.flops / (seconds * (spec.unit == Unit::tensor ? device.tensor_flops_per_s : device.fp32_flops_per_s));
    p.bw_util = p.dram_bytes / (seconds * device.dram_bytes_per_s);
    return p;
}

AloneProfile alone_profile(const DeviceSpec& device, const KernelSpec& kernel) { return measure_alone(device, kernel); }

}  // namespace tierline::fake
