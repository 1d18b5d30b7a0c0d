// Random load from many streams: resources are never exceeded, everything ends, blocks are neither lost nor run twice,
// achieved use never passes the peaks, and the same seed gives the same timeline.
#include <random>

#include "bench.hpp"
#include "check.hpp"

namespace {

std::uint64_t run_once(std::uint64_t seed, Gpu gpu, bool mps) {
    std::mt19937_64 random(seed);
    const auto dice = [&random](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
    Bench b(device_spec(gpu), seed, mps);
    const DeviceSpec d = b.device.spec();
    std::vector<ContextId> contexts{b.context, -1};
    require(b.device.create_context(contexts[1]));
    std::vector<StreamId> streams;
    for (int i = 0; i < 8; ++i) {
        StreamOptions o;
        o.priority = -dice(3);
        o.blocking = dice(2) == 0;
        o.legacy = i < 2;
        o.client = static_cast<std::uint32_t>(1 + dice(3));
        if (dice(3) == 0) {
            o.first_sm = d.lane_granularity * dice(4);
            o.sm_count = d.lane_granularity * (1 + dice(4));
        }
        streams.push_back(b.stream_of(contexts[static_cast<std::size_t>(i % 2)], o));
    }
    std::vector<KernelId> kernels;
    for (const KernelSpec& k : named_kernels()) {
        if (k.spin != Spin::none || k.cooperative || blocks_of(k) > 20000) continue;
        kernels.push_back(b.kernel(k));
    }
    std::int64_t expected_bytes = 0, now = 0;
    std::size_t launched = 0;
    for (int i = 0; i < 250; ++i) {
        const StreamId s = streams[static_cast<std::size_t>(dice(8))];
        now += dice(20'000);
        const KernelId k = kernels[static_cast<std::size_t>(dice(static_cast<int>(kernels.size())))];
        b.launch(s, k, now);
        expected_bytes += static_cast<std::int64_t>(b.device.alone_profile(k)->flops);
        ++launched;
        if (dice(10) == 0) {
            require(b.device.enqueue_copy(s, 1 + dice(1 << 24), static_cast<Direction>(dice(4)), now).status);
            ++launched;
        }
        for (int sm = 0; sm < d.sms; sm += 7) {
            const Device::SmUse use = b.device.sm_use(sm);
            CHECK(use.registers >= 0 && use.registers <= d.registers_per_sm && use.shared_bytes >= 0 &&
                  use.shared_bytes <= d.shared_bytes_per_sm);
            CHECK(use.threads >= 0 && use.threads <= d.threads_per_sm && use.blocks >= 0 &&
                  use.blocks <= d.blocks_per_sm);
        }
        CHECK(b.device.now_ns() == now);
        b.drain();
    }
    b.run();
    CHECK(b.done.size() == launched && b.device.device_idle() && b.device.resident_blocks(-1) == 0);
    for (int sm = 0; sm < d.sms; ++sm) CHECK(b.device.sm_use(sm).blocks == 0 && b.device.sm_use(sm).registers == 0);
    const Truth& t = b.device.truth();
    CHECK(t.sm_integral <= double(t.busy_ns) && t.bw_integral <= double(t.busy_ns) * (1 + 1e-9));
    CHECK(t.shared_sm_peak <= t.sm_peak && t.shared_bw_peak <= t.bw_peak && t.excess_ns <= t.shared_ns &&
          t.shared_ns <= t.busy_ns);
    CHECK(t.completions_lost == 0);
    std::uint64_t hash = static_cast<std::uint64_t>(expected_bytes);
    for (const Completion& c : b.done)
        hash = hash * 1099511628211ULL ^ static_cast<std::uint64_t>(c.op * 7 + c.start_ns * 3 + c.end_ns);
    return hash;
}

// Work is conserved however often a kernel's rounds are taken back: total achieved FLOPs equal those asked for.
void work_is_conserved_under_interruptions() {
    Bench b;
    StreamOptions urgent;
    urgent.priority = -1;
    const StreamId low = b.stream(), high = b.stream(urgent);
    const KernelId big = b.kernel("gelu_large"), small = b.kernel("gemm_1024"), gemm = b.kernel("gemm_8192");
    for (int i = 0; i < 10; ++i) b.launch(low, i % 2 == 0 ? big : gemm);
    for (int i = 0; i < 100; ++i) b.launch(high, small, 37'000 * i);
    b.run();
    const DeviceSpec d = b.device.spec();
    const double asked =
        5 * b.device.alone_profile(big)->flops / d.fp32_flops_per_s +
        (5 * b.device.alone_profile(gemm)->flops + 100 * b.device.alone_profile(small)->flops) / d.tensor_flops_per_s;
    const double done = b.device.truth().sm_integral * 1e-9;
    CHECK(done > asked * 0.995 && done < asked * 1.005);
}

void the_log_shows_the_sums() {
    Bench b;
    b.device.log_truth(true);
    StreamOptions two;
    two.client = 9;
    const KernelId k = b.kernel("gemm_512");
    b.launch(b.stream(), k);
    b.launch(b.stream(two), k);
    b.run();
    TruthSample sample{};
    double peak = 0;
    int clients = 0;
    int samples = 0;
    std::int64_t last = -1;
    for (; b.device.poll_sample(sample); ++samples) {
        CHECK(sample.at_ns >= last);
        last = sample.at_ns;
        peak = std::max(peak, sample.sm_sum);
        clients = std::max(clients, sample.clients);
    }
    CHECK(samples >= 2 && clients == 2 && sample.kernels == 0);
    CHECK(peak == b.device.truth().sm_peak && peak == 2 * b.device.alone_profile(k)->sm_util);
}

}  // namespace

int main() {
    for (std::uint64_t seed = 1; seed <= 12; ++seed) {
        const Gpu gpu = static_cast<Gpu>(seed % 3);
        CHECK(run_once(seed, gpu, seed % 2 == 0) == run_once(seed, gpu, seed % 2 == 0));
    }
    CHECK(run_once(1, Gpu::h200, true) != run_once(2, Gpu::h200, true));
    work_is_conserved_under_interruptions();
    the_log_shows_the_sums();
    return check_result();
}
