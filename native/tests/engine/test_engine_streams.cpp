// Streams: order, priorities, events, the legacy stream, host operations, spinning, time slices, limits.
#include <algorithm>
#include <cstring>

#include "bench.hpp"
#include "check.hpp"

namespace {

void streams_are_fifo() {
    Bench b;
    const StreamId s = b.stream();
    EventId e = -1;
    require(b.device.create_event(e));
    std::vector<OpId> ops;
    for (int i = 0; i < 20; ++i) {
        ops.push_back(b.launch(s, b.kernel(i % 2 == 0 ? "gemm_512" : "add_small")));
        if (i % 5 == 0)
            ops.push_back(
                b.device
                    .enqueue_copy(s, 1 << 20, i % 2 == 0 ? Direction::host_to_device : Direction::device_to_device, 0)
                    .op);
        if (i % 7 == 0) ops.push_back(b.device.enqueue_event(s, e, 0).op);
    }
    CHECK(!b.device.event_done(e) && b.device.event_time_ns(e) == -1);
    b.run();
    CHECK(b.done.size() == ops.size());
    for (std::size_t i = 0; i < b.done.size() && i < ops.size(); ++i) {
        CHECK(b.done[i].op == ops[i]);
        if (i > 0) CHECK(b.done[i].start_ns >= b.done[i - 1].end_ns);
    }
    CHECK(b.device.event_done(e) && b.device.event_time_ns(e) > 0);
    CHECK(b.device.completed(s) == b.device.submitted(s) && b.device.idle(s) && b.device.device_idle());
}

void urgent_blocks_go_first_and_nothing_is_preempted() {
    Bench b;
    StreamOptions urgent;
    urgent.priority = -5;
    urgent.client = 7;
    const KernelId big = b.kernel("gemm_8192"), small = b.kernel("gemm_4096");
    const OpId low = b.launch(b.stream(), big);
    b.run(300'000);
    const std::int64_t resident = b.device.resident_blocks(big);
    CHECK(resident == 132);
    const StreamId u = b.stream(urgent);
    const OpId high = b.launch(u, small, 300'000);
    b.run(304'000);
    CHECK(b.device.resident_blocks(big) >= 90);          // most blocks in flight are still there: 304 us is no boundary
    b.run();
    const std::int64_t wave = alone_profile(b.device.spec(), named("gemm_8192")).duration_ns / 15;
    CHECK(b.of(high)->end_ns < b.of(low)->end_ns);
    CHECK(b.of(high)->start_ns - 300'000 < wave);        // it waits for blocks, not for the kernel
    const std::int64_t sum = alone_profile(b.device.spec(), named("gemm_8192")).duration_ns +
                             alone_profile(b.device.spec(), named("gemm_4096")).duration_ns;
    CHECK(b.of(low)->end_ns > sum * 95 / 100 && b.of(low)->end_ns < sum * 115 / 100);   // no work is lost or done twice

    Bench equal;                                          // without priority it waits for the tail
    const OpId first = equal.launch(equal.stream(), equal.kernel("gemm_8192"));
    const OpId second = equal.launch(equal.stream(), equal.kernel("gemm_4096"), 300'000);
    equal.run();
    CHECK(equal.of(second)->start_ns > equal.of(first)->end_ns - wave * 3 / 2);
}

void left_over_places_are_used() {
    Bench b;
    KernelSpec part = named("gemm_4096");
    part.grid[0] = 100;
    part.grid[1] = 1;
    const KernelId p = b.kernel(part), tiny = b.kernel("cast_tiny");
    const OpId first = b.launch(b.stream(), p);
    const OpId second = b.launch(b.stream(), tiny, 10'000);
    b.run();
    CHECK(b.of(second)->end_ns < b.of(first)->end_ns);
}

void blocking_streams_and_the_legacy_stream() {
    Bench b;
    StreamOptions legacy, blocking;
    legacy.legacy = true;
    blocking.blocking = true;
    const StreamId l = b.stream(legacy), s = b.stream(blocking), t = b.stream(blocking), free = b.stream();
    const KernelId k = b.kernel("gemm_512");
    const OpId a = b.launch(s, k), mid = b.launch(l, k), c = b.launch(t, k), f = b.launch(free, k);
    b.run();
    CHECK(b.of(mid)->start_ns >= b.of(a)->end_ns);
    CHECK(b.of(c)->start_ns >= b.of(mid)->end_ns);
    CHECK(b.of(f)->start_ns < b.of(a)->end_ns);
    StreamOptions again;
    again.legacy = true;
    StreamId none = -1;
    CHECK(b.device.create_stream(b.context, again, none) == Status::bad_argument);
}

void waits_and_hosts() {
    Bench b;
    const StreamId s = b.stream(), t = b.stream();
    EventId e = -1;
    require(b.device.create_event(e));
    const OpId slow = b.launch(s, b.kernel("gemm_2048"));
    b.device.enqueue_event(s, e, 0);
    b.device.enqueue_wait(t, e, 0);
    const OpId after = b.launch(t, b.kernel("empty"));
    CHECK(b.device.enqueue_host(t, 42, 0).status == Status::ok);
    const OpId last = b.launch(t, b.kernel("empty"));
    require(b.device.destroy_event(e));                  // what is queued goes on
    b.run();
    CHECK(b.of(after)->start_ns >= b.of(slow)->end_ns);
    CHECK(b.done.back().kind == OpKind::host && b.done.back().cookie == 42 && b.of(last) == nullptr);
    CHECK(b.device.host_done(t, b.device.now_ns() + 5000) == Status::ok);
    CHECK(b.device.host_done(t, b.device.now_ns()) == Status::bad_argument);
    b.run();
    CHECK(b.of(last) != nullptr);
}

void spinning() {
    Bench b;
    const StreamId s = b.stream(), t = b.stream();
    const OpId spin = b.launch(s, b.kernel("spin_until_flag"));
    b.run();
    CHECK(b.of(spin) == nullptr && b.device.next_time() == never && b.device.resident_blocks(-1) == 1);
    const OpId post = b.launch(t, b.kernel("post_flag"), 500'000);
    b.run();
    CHECK(b.of(spin) != nullptr && b.of(spin)->end_ns > b.of(post)->end_ns);
    const OpId again = b.launch(s, b.kernel("spin_until_flag"), b.device.now_ns());
    b.run();
    CHECK(b.of(again) == nullptr);
    b.device.spin_post(1, b.device.now_ns() + 1000);
    b.run();
    CHECK(b.of(again) != nullptr);
}

void contexts_take_turns_without_mps() {
    std::int64_t ends[2];
    for (bool mps : {false, true}) {
        Bench b(steady(), 1, mps);
        ContextId other = -1;
        require(b.device.create_context(other));
        KernelSpec half = named("gemm_8192");
        half.grid[0] = 1;
        half.grid[1] = 60;                               // sixty SMs, one wave: two of them fit side by side
        half.flops_per_block *= 100;                     // about 9 ms
        const KernelId k = b.kernel(half);
        const StreamId s = b.stream(), t = b.stream_of(other);
        const OpId one = b.launch(s, k), two = b.launch(t, k);
        bool together = false;
        while (b.device.next_time() != never) {
            b.device.advance(b.device.next_time());
            together = together || b.device.true_sums().clients == 2;
        }
        b.drain();
        CHECK(together == mps);
        CHECK(b.of(one) != nullptr && b.of(two) != nullptr);
        ends[mps] = b.device.now_ns();
        if (!mps) CHECK(b.of(two)->start_ns >= b.device.spec().slice_ns && b.of(two)->start_ns < b.of(one)->end_ns);
    }
    CHECK(double(ends[0]) > 1.9 * double(ends[1]));
}

void a_dead_context_leaves_nothing() {
    Bench b(steady(), 1, false);
    ContextId other = -1;
    require(b.device.create_context(other));
    const StreamId s = b.stream(), t = b.stream_of(other);
    const KernelId k = b.kernel("gemm_4096");
    for (int i = 0; i < 50; ++i) b.launch(t, k);
    b.device.enqueue_copy(t, 1 << 28, Direction::host_to_device, 0);
    const OpId mine = b.launch(s, k);
    b.run(3'000'000);
    CHECK(b.device.destroy_context(other) == Status::ok);
    CHECK(b.device.destroy_context(other) == Status::bad_context);
    b.run();
    CHECK(b.of(mine) != nullptr && b.device.device_idle() && b.device.resident_blocks(-1) == 0);
    for (int sm = 0; sm < 132; ++sm) CHECK(b.device.sm_use(sm).threads == 0);
}

void limits_give_codes() {
    Bench b;
    const StreamId s = b.stream();
    const KernelId k = b.kernel("empty");
    Status last = Status::ok;
    int accepted = 0;
    for (; accepted < 1'000'000 && last == Status::ok; ++accepted) last = b.device.enqueue_kernel(s, k, 0).status;
    CHECK(last == Status::operations_full && accepted > 10'000);
    b.run();
    CHECK(b.device.enqueue_kernel(s, k, b.device.now_ns()).status == Status::ok);
    StreamId stream = -1;
    while ((last = b.device.create_stream(b.context, {}, stream)) == Status::ok) {}
    CHECK(last == Status::streams_full);
    CHECK(b.device.destroy_stream(stream) == Status::ok);
    CHECK(b.device.create_stream(b.context, {}, stream) == Status::ok);
    EventId event = -1;
    while ((last = b.device.create_event(event)) == Status::ok) {}
    CHECK(last == Status::events_full);
    ContextId context = -1;
    while ((last = b.device.create_context(context)) == Status::ok) {}
    CHECK(last == Status::contexts_full);
    KernelId kernel = -1;
    KernelSpec spec = named("empty");
    while ((last = b.device.register_kernel(spec, kernel)) == Status::ok) ++spec.grid[0];
    CHECK(last == Status::kernels_full);
    CHECK(b.device.register_kernel(named("empty"), kernel) == Status::ok && kernel == k);   // known already

    CHECK(b.device.enqueue_kernel(-1, k, 0).status == Status::bad_stream);
    CHECK(b.device.enqueue_kernel(5000, k, 0).status == Status::bad_stream);
    CHECK(b.device.enqueue_kernel(s, 1 << 20, 0).status == Status::bad_kernel);
    CHECK(b.device.enqueue_event(s, -3, 0).status == Status::bad_event);
    CHECK(b.device.enqueue_copy(s, -1, Direction::fill, 0).status == Status::bad_argument);
    StreamOptions lane;
    lane.sm_count = 13;
    CHECK(b.device.create_stream(b.context, lane, stream) == Status::bad_argument);
    Bench fresh;
    KernelSpec huge = named("gemm_4096");
    huge.dynamic_shared_bytes = 300 * 1024;
    CHECK(fresh.device.register_kernel(huge, kernel) == Status::too_large);
    KernelSpec cooperative = named("grid_sync_step");
    cooperative.grid[0] = 1'000'000;
    const KernelId c = fresh.kernel(cooperative);
    CHECK(fresh.device.enqueue_kernel(fresh.stream(), c, 0).status == Status::too_large);
    KernelSpec senseless = named("empty");
    senseless.compute_efficiency = 0;
    CHECK(fresh.device.register_kernel(senseless, kernel) == Status::bad_argument);
}

void graphs_and_cooperative_grids() {
    Bench b;
    const KernelId k = b.kernel("empty");
    const std::vector<KernelId> nodes(10, k);
    const StreamId s = b.stream();
    const OpId last = b.device.enqueue_graph(s, nodes.data(), 10, 0).op;
    b.run();
    const std::int64_t as_graph = b.of(last)->end_ns;
    CHECK(b.done.size() == 10);
    Bench eager;
    const StreamId t = eager.stream();
    for (int i = 0; i < 10; ++i) eager.launch(t, eager.kernel("empty"));
    eager.run();
    CHECK(as_graph < eager.device.now_ns());             // shorter gaps
    const OpId big = b.launch(s, b.kernel("gemm_2048"), b.device.now_ns());
    const OpId all = b.launch(b.stream(), b.kernel("grid_sync_step"), b.device.now_ns());
    b.run();
    CHECK(b.of(all) != nullptr && b.of(big) != nullptr);
}

void destroyed_streams_finish_their_work() {
    Bench b;
    const StreamId s = b.stream();
    const OpId op = b.launch(s, b.kernel("gemm_512"));
    CHECK(b.device.destroy_stream(s) == Status::ok);
    CHECK(b.device.enqueue_kernel(s, b.kernel("gemm_512"), 0).status == Status::bad_stream);
    b.run();
    CHECK(b.of(op) != nullptr && b.stream() == s);
}

}  // namespace

int main() {
    streams_are_fifo();
    urgent_blocks_go_first_and_nothing_is_preempted();
    left_over_places_are_used();
    blocking_streams_and_the_legacy_stream();
    waits_and_hosts();
    spinning();
    contexts_take_turns_without_mps();
    a_dead_context_leaves_nothing();
    limits_give_codes();
    graphs_and_cooperative_grids();
    destroyed_streams_finish_their_work();
    return check_result();
}
