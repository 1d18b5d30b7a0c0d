// Speeds: roofline, SM counts against published measurements, shared resources, L2.
#include <algorithm>
#include <cmath>

#include "bench.hpp"
#include "check.hpp"

namespace {

bool near(double a, double b, double tolerance) { return std::fabs(a - b) <= tolerance; }

void alone_follows_the_roofline() {
    for (Gpu gpu : {Gpu::h200, Gpu::a100, Gpu::v100}) {
        const DeviceSpec d = device_spec(gpu);
        for (const KernelSpec& spec : named_kernels()) {
            if (spec.spin != Spin::none) continue;
            const AloneProfile p = alone_profile(d, fitted(d, spec));
            const double peak = spec.unit == Unit::tensor ? d.tensor_flops_per_s : d.fp32_flops_per_s;
            const double bound = std::max(p.flops / peak, p.dram_bytes / d.dram_bytes_per_s) * 1e9;
            CHECK(double(p.duration_ns) >= bound);                   // nothing beats the roofline
            CHECK(p.sm_util <= 1 && p.bw_util <= 1 && p.duration_ns > d.ramp_ns);
            CHECK(p.sm_blocks >= 1 && p.sm_blocks <= d.sms);
        }
    }
    const DeviceSpec h = device_spec(Gpu::h200);
    const AloneProfile gemm = alone_profile(h, named("gemm_8192"));
    CHECK(gemm.flops / double(gemm.duration_ns) > 750e3 &&
          gemm.flops / double(gemm.duration_ns) < 800e3); // measured: 769-798 TFLOP/s
    const AloneProfile norm = alone_profile(h, named("rms_norm_131072"));
    CHECK(norm.bw_util > 0.93 && norm.bw_util <= 1);
    CHECK(norm.sm_util < 0.35);
    const AloneProfile empty = alone_profile(h, named("empty"));
    CHECK(empty.duration_ns >= 1400 && empty.duration_ns <= 2200);
    const AloneProfile tiny = alone_profile(h, named("cast_tiny"));
    CHECK(tiny.sm_blocks <= 4 && tiny.sm_util < 0.01);
}

double speed_on(const char* name, int sms) {
    Bench b;
    StreamOptions lane;
    lane.sm_count = sms;
    const OpId op = b.launch(b.stream(lane), b.kernel(name));
    b.run();
    return double(alone_profile(b.device.spec(), named(name)).duration_ns) / double(b.duration(op));
}

// simon-mo/green-ctx, table 2.1 of the notes: speed on so many of 132 SMs. Tolerance 0.06 of full speed.
void speed_against_sms_as_published() {
    const struct { int sms; double norm; double gemm; } rows[] = {
        {8, .195, -1}, {16, .38, .15}, {32, .74, .23}, {48, .95, .38}, {64, 1.0, .52}, {96, -1, .78}, {128, -1, 1.0}};
    for (const auto& row : rows) {
        if (row.norm >= 0) CHECK(near(speed_on("rms_norm_131072", row.sms), row.norm, 0.06));
        if (row.gemm >= 0) CHECK(near(speed_on("gemm_8192", row.sms), row.gemm, 0.06));
    }
    CHECK(near(speed_on("rms_norm_16384", 48), .95, 0.06));
    CHECK(near(speed_on("gemm_14336x4096", 8), .07, 0.02));
    CHECK(near(speed_on("gemm_14336x4096", 96), .75, 0.04));
    CHECK(near(speed_on("flash_prefill", 64), 64.0 / 132, 0.04));
    CHECK(speed_on("gemm_skinny_1", 48) < 0.97);
}

void bandwidth_is_conserved_and_shared() {
    Bench b;
    StreamOptions left, right;
    left.sm_count = 64;
    left.client = 1;
    right.first_sm = 64;
    right.sm_count = 68;
    right.client = 2;
    const OpId a = b.launch(b.stream(left), b.kernel("rms_norm_131072"));
    const OpId c = b.launch(b.stream(right), b.kernel("rms_norm_131072"));
    b.run();
    const AloneProfile p = alone_profile(b.device.spec(), named("rms_norm_131072"));
    const double end = double(std::max(b.of(a)->end_ns, b.of(c)->end_ns));
    CHECK(2 * p.dram_bytes / end <= b.device.spec().dram_bytes_per_s * 1e-9);      // bytes per ns
    CHECK(end > 1.9 * double(p.duration_ns)); // two bandwidth-bound kernels gain nothing
    const Truth& t = b.device.truth();
    CHECK(near(t.bw_integral * b.device.spec().dram_bytes_per_s * 1e-9, 2 * p.dram_bytes, 0.001 * p.dram_bytes));
    CHECK(t.shared_bw_peak > 1.9 && t.excess_ns > 0 && t.excess_ns == t.shared_ns);
    CHECK(t.bw_integral <= double(t.busy_ns));
}

void complementary_lanes_gain() {
    // GEMM on 84 SMs beside a norm on 48: about 1.3 times one after another, the notes' example.
    Bench b;
    StreamOptions compute, memory;
    memory.sm_count = 48;
    compute.first_sm = 48;
    compute.sm_count = 84;
    const KernelId gemm = b.kernel("gemm_4096"), norm = b.kernel("rms_norm_16384");
    const StreamId s = b.stream(compute), m = b.stream(memory);
    for (int i = 0; i < 20; ++i) b.launch(s, gemm);
    for (int i = 0; i < 75; ++i) b.launch(m, norm);
    b.run();
    const double alone = 20.0 * double(alone_profile(b.device.spec(), named("gemm_4096")).duration_ns) +
                         75.0 * double(alone_profile(b.device.spec(), named("rms_norm_16384")).duration_ns);
    const double gain = alone / double(b.device.now_ns());
    CHECK(gain > 1.2 && gain < 1.7);
}

void compute_is_shared_within_an_sm() {
    Bench b;
    const KernelId k = b.kernel("gemm_2048");            // two blocks fit an SM; each kernel has 256
    const OpId alone = b.launch(b.stream(), k);
    b.run();
    const std::int64_t start = b.device.now_ns();
    KernelSpec half = named("gemm_2048");
    half.grid[1] = 8;                                    // 128 blocks: two such kernels fit beside one another
    const KernelId h = b.kernel(half);
    const OpId one = b.launch(b.stream(), h, start), two = b.launch(b.stream(), h, start);
    b.run();
    const std::int64_t own = alone_profile(b.device.spec(), half).duration_ns;
    CHECK(b.of(one)->start_ns < b.of(two)->end_ns && b.of(two)->start_ns < b.of(one)->end_ns);
    CHECK(b.duration(one) > own * 3 / 2);                // both pipes are the same pipe
    CHECK(near(double(b.duration(two)), double(b.duration(alone)), 0.25 * double(b.duration(alone))));
}

void working_sets_push_each_other_out_of_l2() {
    KernelSpec cached = named("add_small");
    cached.grid[0] = 20000;
    cached.l2_hit = 0.9;
    cached.working_set_bytes = 40e6;
    KernelSpec other = cached;
    other.l2_hit = 0;
    other.bytes_per_block = 1;                           // takes no bandwidth, only L2
    other.grid[0] = 132;
    other.block_floor_ns = 10'000'000;
    Bench b;
    const KernelId c = b.kernel(cached), o = b.kernel(other);
    const StreamId s = b.stream(), t = b.stream();
    const OpId before = b.launch(s, c);
    b.run();
    b.launch(t, o, b.device.now_ns());
    b.run(b.device.now_ns() + 50'000);
    const OpId beside = b.launch(s, c, b.device.now_ns());
    b.run();
    CHECK(b.duration(beside) > b.duration(before));
}

void first_waves_are_real() {
    // 133 blocks on 132 places take two waves.
    KernelSpec k = named("gemm_4096");
    k.grid[0] = 132;
    k.grid[1] = 1;
    const std::int64_t one = alone_profile(steady(), k).duration_ns;
    k.grid[0] = 133;
    const std::int64_t two = alone_profile(steady(), k).duration_ns;
    CHECK(two > one + (one - steady().ramp_ns) * 8 / 10);
}

}  // namespace

int main() {
    alone_follows_the_roofline();
    speed_against_sms_as_published();
    bandwidth_is_conserved_and_shared();
    complementary_lanes_gain();
    compute_is_shared_within_an_sm();
    working_sets_push_each_other_out_of_l2();
    first_waves_are_real();
    return check_result();
}
