// The state machine without a clock: launches come, end, and the sums stay within the limits.
#include "admission_bench.hpp"

#include <limits>
#include <random>
#include <string>
#include <vector>

using namespace tierline;
using tierline::test::Bench;
using tierline::test::strict;

namespace {

void a_client_alone_is_never_gated() {
    Bench bench(strict());
    const int client = bench.admission.join("a", Priority::best_effort, 0, 0, 0);
    const int big = bench.kernel("big", 900'000, 900'000, 1000);
    for (std::uint64_t id = 0; id < 4; ++id) {
        const int stream = bench.admission.open_stream(client, id);
        for (int index = 0; index < 100; ++index) {
            const Ticket ticket = bench.launch(client, stream, big, 0);
            CHECK(ticket.admitted());
            CHECK(ticket.reason == Reason::alone);
            CHECK(!ticket.track);
        }
    }
    CHECK(bench.region->sm_ppm == 4 * 900'000);  // it knows what it does to itself
    CHECK(bench.region->peak_sm_ppm == 0);       // which is no concern of anybody else's
}

void complementary_kernels_run_together_and_rivals_do_not() {
    Bench bench(strict());
    const int a = bench.admission.join("a", Priority::best_effort, 0, 0, 0);
    const int b = bench.admission.join("b", Priority::best_effort, 0, 0, 0);
    const int sa = bench.admission.open_stream(a, 1);
    const int sb = bench.admission.open_stream(b, 1);
    const int gemm = bench.kernel("gemm", 800'000, 200'000, 1000);
    const int norm = bench.kernel("norm", 150'000, 750'000, 1000);
    CHECK(bench.launch(a, sa, gemm, 0).admitted());
    CHECK(bench.launch(b, sb, norm, 0).reason == Reason::fits);
    CHECK(bench.region->sm_ppm == 950'000);
    bench.end(sb, 1, 10);
    const Ticket rival = bench.launch(b, sb, gemm, 20);
    CHECK(!rival.admitted());
    CHECK(bench.region->waiters[rival.waiter].reason == Reason::sm_limit);
    CHECK(bench.region->waiters[rival.waiter].blamed == a);
    bench.end(sa, 1, 30);
    CHECK(bench.admitted.size() == 1);
    CHECK(bench.admission.take(rival.waiter, 30).admitted());
    CHECK(bench.region->waited_for_ns[b][a] == 10);
    CHECK(bench.region->clients[b].statistics.starved_ns == 10);
}

void the_best_group_is_found_among_waiting_heads() {
    Bench bench(strict());
    const int holder = bench.admission.join("holder", Priority::best_effort, 0, 0, 0);
    const int sh = bench.admission.open_stream(holder, 1);
    const int whole = bench.kernel("whole", kWhole, kWhole, 1000);
    const int compute = bench.kernel("compute", 600'000, 100'000, 1000);
    const int memory = bench.kernel("memory", 100'000, 600'000, 1000);
    const int greedy = bench.kernel("greedy", 700'000, 700'000, 1000);
    CHECK(bench.launch(holder, sh, whole, 0).admitted());
    std::vector<Ticket> tickets;
    for (const int row : {greedy, compute, memory}) {  // one at a time, greedy would come first and shut the others out
        const int client = bench.admission.join("c", Priority::best_effort, 0, 0, 0);
        tickets.push_back(bench.launch(client, bench.admission.open_stream(client, 1), row, 0));
        CHECK(!tickets.back().admitted());
    }
    bench.end(sh, 1, 0);
    CHECK(bench.admitted.size() == 2);
    CHECK(bench.region->sm_ppm == 700'000);
    CHECK(bench.region->bw_ppm == 700'000);
    CHECK(bench.region->waiters[tickets[0].waiter].state == 1);
}

void high_priority_never_waits_in_latency_mode() {
    Config config = strict();
    config.mode = Mode::latency;
    Bench bench(config);
    const int high = bench.admission.join("high", Priority::high, 0, 0, 0);
    const int low = bench.admission.join("low", Priority::best_effort, 0, 0, 0);
    const int sh = bench.admission.open_stream(high, 1);
    const int sl = bench.admission.open_stream(low, 1);
    const int big = bench.kernel("big", 900'000, 900'000, 1000);
    CHECK(bench.launch(low, sl, big, 0).admitted());
    const Ticket ticket = bench.launch(high, sh, big, 0);
    CHECK(ticket.reason == Reason::never_waits);
    CHECK(!ticket.track);  // no driver call of its own
    CHECK(bench.region->clients[high].statistics.excess == 1);
}

void high_priority_goes_first_in_strict_mode() {
    Config config = strict();
    config.budget_ns = kSecond;
    Bench bench(config);
    const int high = bench.admission.join("high", Priority::high, 0, 0, 0);
    const int low = bench.admission.join("low", Priority::best_effort, 0, 0, 0);
    const int sh = bench.admission.open_stream(high, 1);
    const int sl = bench.admission.open_stream(low, 1);
    const int sl2 = bench.admission.open_stream(low, 2);
    const int big = bench.kernel("big", 900'000, 900'000, 100'000);
    const int small = bench.kernel("small", 50'000, 50'000, 100'000);
    CHECK(bench.launch(low, sl, big, 0).admitted());
    const Ticket waits = bench.launch(high, sh, big, 0);
    CHECK(!waits.admitted());
    // It would fit beside what runs, but would stand in the way of the high-priority launch that waits.
    const Ticket held = bench.launch(low, sl2, small, 0);
    CHECK(!held.admitted());
    CHECK(bench.region->waiters[held.waiter].reason == Reason::high_priority_first);
    bench.end(sl, 1, 50);
    CHECK(bench.admission.take(waits.waiter, 50).reason != Reason::forced);
}

void unknown_kernels_run_alone_until_learnt() {
    Bench bench(strict());
    const int a = bench.admission.join("a", Priority::best_effort, 0, 0, 0);
    const int b = bench.admission.join("b", Priority::best_effort, 0, 0, 0);
    const int sa = bench.admission.open_stream(a, 1);
    const int sb = bench.admission.open_stream(b, 1);
    const int small = bench.kernel("small", 10'000, 10'000, 1000);
    KernelFacts facts;
    facts.name = "new";
    facts.grid = {4, 1, 1};
    const int fresh = bench.admission.add_kernel(77, facts);
    Nanoseconds now = 0;
    for (int sample = 0; sample < 3; ++sample) {
        const Ticket running = bench.launch(a, sa, small, now);
        const Ticket ticket = bench.launch(b, sb, fresh, now);
        CHECK(!ticket.admitted());
        CHECK(bench.region->waiters[ticket.waiter].reason == Reason::unknown_runs_alone);
        bench.end(sa, running.seq, ++now);
        const Ticket taken = bench.admission.take(ticket.waiter, now);
        CHECK(taken.learn && taken.track);
        CHECK(!bench.launch(a, sa, small, now).admitted());  // and keeps others out
        bench.end(sb, taken.seq, ++now);
        for (const int waiter : bench.admitted) {
            if (bench.region->waiters[waiter].state != 0 && waiter != ticket.waiter) {
                const Ticket other = bench.admission.take(waiter, now);
                bench.end(other.stream, other.seq, now);
            }
        }
        bench.admitted.clear();
        bench.admission.learned(fresh, 5000 + sample);
    }
    CHECK(bench.admission.is_known(fresh));
    CHECK(bench.region->kernels[fresh].demand.duration_ns == 5000);
    CHECK(bench.region->kernels[fresh].demand.sm_blocks == 4);
    CHECK(bench.launch(a, sa, small, now).admitted());
    CHECK(bench.launch(b, sb, fresh, now).admitted());
}

void a_roofline_gives_both_shares() {
    Config config = strict();
    config.device.flops_per_s = 1e12;
    config.device.bytes_per_s = 1e9;
    Bench bench(config);
    KernelFacts facts;
    facts.name = "gemm";
    facts.flops = 5e8;   // half of the peak in a millisecond
    facts.bytes = 1e5;   // a tenth
    const int row = bench.admission.add_kernel(5, facts);
    for (int sample = 0; sample < 3; ++sample) bench.admission.learned(row, kMillisecond);
    CHECK(bench.region->kernels[row].source == Source::roofline);
    CHECK(bench.region->kernels[row].demand.sm_ppm == 500'000);
    CHECK(bench.region->kernels[row].demand.bw_ppm == 100'000);
}

void an_old_launch_has_the_device_drained() {
    Config config = strict();
    config.depth = 1;
    config.depth_ns = 0;
    Bench bench(config);
    const int a = bench.admission.join("a", Priority::best_effort, 0, 0, 0);
    const int b = bench.admission.join("b", Priority::best_effort, 0, 0, 0);
    const int c = bench.admission.join("c", Priority::best_effort, 0, 0, 0);
    const int sa = bench.admission.open_stream(a, 1);
    const int sb = bench.admission.open_stream(b, 1);
    const int sc = bench.admission.open_stream(c, 1);
    const int half = bench.kernel("half", 500'000, 500'000, 1000);
    const int big = bench.kernel("big", 900'000, 900'000, 1000);
    std::uint64_t seq_a = bench.launch(a, sa, half, 0).seq;
    std::uint64_t seq_b = bench.launch(b, sb, half, 0).seq;
    const Ticket waits = bench.launch(c, sc, big, 0);
    CHECK(!waits.admitted());
    bool gone = false;
    Nanoseconds now = 0;
    while (!gone && now < kSecond) {  // two others keep the device full, in turns
        now += kMillisecond;
        const auto again = [&](int client, int stream, std::uint64_t& seq) {
            bench.end(stream, seq, now);
            if (bench.region->waiters[waits.waiter].state == 2) return true;
            const Ticket ticket = bench.launch(client, stream, half, now);
            if (ticket.admitted()) seq = ticket.seq;
            else bench.region->waiters[ticket.waiter].state = 1;
            return false;
        };
        gone = again(a, sa, seq_a) || again(b, sb, seq_b);
    }
    CHECK(gone);
    CHECK(now <= config.drain_after_ns + 2 * kMillisecond);
    CHECK(bench.region->clients[c].statistics.forced == 0);
}

void a_client_that_leaves_frees_what_it_held() {
    Bench bench(strict());
    const int a = bench.admission.join("a", Priority::best_effort, 0, 0, 0);
    const int b = bench.admission.join("b", Priority::best_effort, 0, 0, 0);
    const int big = bench.kernel("big", 900'000, 900'000, 1000);
    CHECK(bench.launch(a, bench.admission.open_stream(a, 1), big, 0).admitted());
    const Ticket waits = bench.launch(b, bench.admission.open_stream(b, 1), big, 0);
    CHECK(!waits.admitted());
    bench.admission.leave(a, 5);
    CHECK(bench.region->sm_ppm == 0);
    int slots[4];
    CHECK(bench.admission.decide(5, slots, 4) == 1);
    CHECK(bench.admission.take(waits.waiter, 5).admitted());
    CHECK(bench.region->clients[a].state == 2);  // its statistics can still be read
}

void memory_has_a_cap() {
    Bench bench(strict());
    const int a = bench.admission.join("a", Priority::best_effort, 100, 0, 0);
    const int b = bench.admission.join("b", Priority::best_effort, 0, 0, 0);
    CHECK(bench.admission.reserve_memory(a, 60));
    CHECK(!bench.admission.reserve_memory(a, 60));
    CHECK(bench.admission.reserve_memory(b, 1'000'000));
    bench.admission.release_memory(a, 30);
    CHECK(bench.admission.reserve_memory(a, 60));
    CHECK(bench.region->clients[a].statistics.denied_allocations == 1);
}

void what_does_not_fit_passes_and_is_counted() {
    Bench bench(strict());
    int last = -1;
    for (int index = 0; index < kMaxClients; ++index) last = bench.admission.join("x", Priority::high, 0, 0, 0);
    CHECK(last == kMaxClients - 1);
    CHECK(bench.admission.join("one too many", Priority::high, 0, 0, 0) == -1);
    for (std::uint64_t id = 0; id < kMaxStreams; ++id) CHECK(bench.admission.open_stream(0, id) >= 0);
    CHECK(bench.admission.open_stream(0, kMaxStreams) == -1);
    const Ticket ticket = bench.launch(0, -1, -1, 0);
    CHECK(ticket.reason == Reason::overflowed);
    CHECK(bench.region->clients[0].statistics.overflowed == 1);
    KernelFacts facts;
    int rows = 0;
    for (std::uint64_t key = 1; key < 5000; ++key) rows += bench.admission.add_kernel(key * 7919, facts) >= 0 ? 1 : 0;
    CHECK(rows == kMaxKernels * 3 / 4);
}

void overload_seen_corrects_the_profiles() {
    Bench bench(strict());
    const int a = bench.admission.join("a", Priority::best_effort, 0, 0, 0);
    const int b = bench.admission.join("b", Priority::best_effort, 0, 0, 0);
    const int sa = bench.admission.open_stream(a, 1);
    const int sb = bench.admission.open_stream(b, 1);
    // In truth both use 0.6 of the bandwidth; the profiles say 0.48, so both are let in and slow each other by 1.2.
    const int ka = bench.kernel("ka", 100'000, 480'000, 100'000);
    const int kb = bench.kernel("kb", 100'000, 480'000, 100'000);
    Nanoseconds now = 0;
    int together = 0;
    for (int round = 0; round < 100; ++round) {
        const Ticket first = bench.launch(a, sa, ka, now);
        const Ticket second = bench.launch(b, sb, kb, now + 1);
        const bool overlapped = second.admitted();
        together += overlapped ? 1 : 0;
        now += overlapped ? 120'000 : 100'000;
        bench.end(sa, first.seq, now);
        if (!overlapped) {
            const Ticket taken = bench.admission.take(second.waiter, now);
            now += 100'000;
            bench.end(sb, taken.seq, now);
        } else {
            bench.end(sb, second.seq, now);
        }
        bench.admitted.clear();
    }
    CHECK(together <= 4);
    CHECK(bench.region->kernels[ka].demand.bw_ppm + bench.region->kernels[kb].demand.bw_ppm > kWhole);
}

// While high priority is joined, even idle, best effort runs ahead by no more than the depth in predicted time.
void best_effort_does_not_run_far_ahead_of_high_priority() {
    Config config;
    Bench bench(config);
    const int low = bench.admission.join("low", Priority::best_effort, 0, 0, 0);
    const int sl = bench.admission.open_stream(low, 1);
    const int row = bench.kernel("k", 300'000, 300'000, 10 * kMicrosecond);
    for (int index = 0; index < 50; ++index) CHECK(bench.launch(low, sl, row, 0).reason == Reason::alone);
    bench.end(sl, 50, 1000);
    const int high = bench.admission.join("high", Priority::high, 0, 0, 1000);
    Ticket ticket;
    do {
        ticket = bench.launch(low, sl, row, 2000);
    } while (ticket.admitted());
    const Stream& stream = bench.region->streams[sl];
    CHECK(bench.region->waiters[ticket.waiter].reason == Reason::depth);
    CHECK(stream.queued_ns > config.depth_ns);  // enough that the device does not run dry
    CHECK(stream.queued_ns <= config.depth_ns + 10 * kMicrosecond);
    // The next one goes as soon as the work ahead of it has shrunk to the depth, though nothing was seen to end.
    const Nanoseconds later_ns = bench.admission.deadline_ns();
    CHECK(later_ns > 2000 && later_ns <= 2000 + 10 * kMicrosecond);
    bench.look(later_ns);
    CHECK(bench.admission.take(ticket.waiter, later_ns).reason != Reason::forced);
    bench.admission.leave(high, later_ns);
    CHECK(bench.launch(low, sl, row, later_ns).reason == Reason::alone);
}

void the_end_of_an_iteration_lets_best_effort_go() {
    Config config = strict();
    config.budget_ns = 1;
    Bench bench(config);
    const int high = bench.admission.join("high", Priority::high, 0, 0, 0);
    const int low = bench.admission.join("low", Priority::best_effort, 0, 0, 0);
    const int sh = bench.admission.open_stream(high, 1);
    const int sl = bench.admission.open_stream(low, 1);
    const int row = bench.kernel("k", 100'000, 100'000, 50'000);
    bench.launch(high, sh, row, 1);
    bench.end(sh, 1, 50'001);
    const Ticket waits = bench.launch(low, sl, row, 60'000);  // the iteration goes on: its host prepares the next launch
    CHECK(!waits.admitted());
    CHECK(bench.region->waiters[waits.waiter].reason == Reason::slowdown_limit);
    CHECK(bench.admission.iteration_ended(high, 70'000));
    bench.look(70'000);
    CHECK(bench.admission.take(waits.waiter, 70'000).reason == Reason::fits);
    CHECK(bench.region->clients[high].iteration_ns == 69'999);
    CHECK(!bench.admission.iteration_ended(high, 80'000));  // no launch since
}

// Strict: best effort that high priority never makes room for goes after `drain_after` and what then still runs.
void strict_mode_starves_nobody() {
    Config config = strict();
    config.budget_ns = 1;
    Bench bench(config);
    const int high = bench.admission.join("high", Priority::high, 0, 0, 0);
    const int low = bench.admission.join("low", Priority::best_effort, 0, 0, 0);
    const int sh = bench.admission.open_stream(high, 1);
    const int sl = bench.admission.open_stream(low, 1);
    const Nanoseconds length_ns = 200 * kMicrosecond;
    const int row = bench.kernel("k", 600'000, 600'000, length_ns);
    Nanoseconds now_ns = 0;
    Ticket running = bench.launch(high, sh, row, now_ns);
    const Ticket waits = bench.launch(low, sl, row, now_ns);
    CHECK(!waits.admitted());
    while (bench.region->waiters[waits.waiter].state == 1 && now_ns < kSecond) {
        // The next one is launched before the device runs dry.
        const Ticket next = bench.launch(high, sh, row, now_ns + length_ns / 2);
        now_ns += length_ns;
        bench.end(sh, running.seq, now_ns);
        if (!next.admitted() && bench.region->waiters[next.waiter].state != 2) break;
        running = next.admitted() ? next : bench.admission.take(next.waiter, now_ns);
    }
    CHECK(bench.region->waiters[waits.waiter].state == 2);
    CHECK(now_ns <= config.drain_after_ns + 2 * length_ns);
    CHECK(bench.region->clients[low].statistics.forced == 0);
}

// Latency: high priority makes room for nobody, so the bound is the longest wait.
void latency_mode_forces_after_the_longest_wait() {
    Config config;
    config.alpha_ppm = config.beta_ppm = kWhole;
    config.max_wait_ns = 500 * kMillisecond;
    Bench bench(config);
    const int high = bench.admission.join("high", Priority::high, 0, 0, 0);
    const int low = bench.admission.join("low", Priority::best_effort, 0, 0, 0);
    const int other = bench.admission.join("other", Priority::best_effort, 0, 0, 0);
    const int sh = bench.admission.open_stream(high, 1);
    const int sl = bench.admission.open_stream(low, 1);
    const int so = bench.admission.open_stream(other, 1);
    const int row = bench.kernel("k", 500'000, 500'000, kMillisecond);
    const int dear = bench.kernel("dear", 100'000, 100'000, kSecond);
    const int cheap = bench.kernel("cheap", 100'000, 100'000, 1000);
    bench.launch(high, sh, row, 0);
    const Ticket waits = bench.launch(low, sl, dear, 0);
    CHECK(!waits.admitted());
    CHECK(bench.region->waiters[waits.waiter].reason == Reason::slowdown_limit);
    for (Nanoseconds now_ns = kMillisecond; now_ns < config.max_wait_ns; now_ns += kMillisecond) {
        bench.launch(high, sh, row, now_ns);
        bench.end(sh, bench.region->streams[sh].launched - 1, now_ns);
        CHECK(bench.region->waiters[waits.waiter].state == 1);
        // Nobody stands still for its sake meanwhile: it would not go the sooner.
        const Ticket small = bench.launch(other, so, cheap, now_ns);
        CHECK(small.admitted());
        if (small.admitted()) bench.end(so, small.seq, now_ns + 1000);
    }
    CHECK(bench.admission.deadline_ns() <= config.max_wait_ns);
    bench.look(config.max_wait_ns);
    CHECK(bench.admission.take(waits.waiter, config.max_wait_ns).reason == Reason::forced);
    CHECK(bench.region->clients[low].statistics.forced == 1);
}

// What waits for its own stream holds nobody else back, however long.
void own_depth_has_nobody_drained() {
    Bench bench(strict());
    const int a = bench.admission.join("a", Priority::best_effort, 0, 0, 0);
    const int b = bench.admission.join("b", Priority::best_effort, 0, 0, 0);
    const int sa = bench.admission.open_stream(a, 1);
    const int sb = bench.admission.open_stream(b, 1);
    const int small = bench.kernel("small", 100'000, 100'000, 1000);
    const int lasting = bench.kernel("lasting", 100'000, 100'000, 80 * kMillisecond);
    const Ticket first = bench.launch(b, sb, small, 0);
    CHECK(bench.launch(a, sa, lasting, 0).admitted());
    const Ticket second = bench.launch(a, sa, lasting, 0);
    CHECK(!second.admitted() && bench.region->waiters[second.waiter].reason == Reason::depth);
    bench.end(sb, first.seq, 10 * kMillisecond);
    CHECK(bench.launch(b, sb, small, 40 * kMillisecond).reason == Reason::fits);
    CHECK(bench.region->waiters[second.waiter].state == 1);
}

// An unknown kernel of high priority waits until the device is its own: nothing new may get in its way.
void an_unknown_kernel_of_high_priority_holds_best_effort_back() {
    Config config = strict();
    config.budget_ns = kSecond;
    Bench bench(config);
    const int high = bench.admission.join("high", Priority::high, 0, 0, 0);
    const int low = bench.admission.join("low", Priority::best_effort, 0, 0, 0);
    const int sh = bench.admission.open_stream(high, 1);
    const int sl = bench.admission.open_stream(low, 1);
    const int sl2 = bench.admission.open_stream(low, 2);
    const int small = bench.kernel("small", 50'000, 50'000, 1000);
    const int fresh = bench.admission.add_kernel(77, {});
    const Ticket running = bench.launch(low, sl, small, 0);
    const Ticket waits = bench.launch(high, sh, fresh, 0);
    CHECK(!waits.admitted());
    CHECK(!bench.launch(low, sl2, small, 10).admitted());
    bench.end(sl, running.seq, 1000);
    const Ticket taken = bench.admission.take(waits.waiter, 1000);
    CHECK(taken.learn && taken.reason != Reason::forced);
}

// A thread may come to the gate just after its client left, when the slots belong to others already.
void a_launch_of_a_client_that_left_touches_nobody() {
    Bench bench(strict());
    const int a = bench.admission.join("a", Priority::best_effort, 0, 0, 0);
    const int stream = bench.admission.open_stream(a, 1);
    const int row = bench.kernel("k", 500'000, 500'000, 1000);
    bench.admission.leave(a, 1);
    CHECK(bench.launch(a, stream, row, 1).reason == Reason::overflowed);
    for (int index = 0; index < kMaxClients; ++index) bench.admission.join("others", Priority::best_effort, 0, 0, 2);
    const int heir = (a + 1) % kMaxClients;
    CHECK(bench.admission.open_stream(heir, 1) == stream);
    CHECK(bench.launch(a, stream, row, 3).reason == Reason::overflowed);
    CHECK(bench.region->streams[stream].launched == 0);
    CHECK(bench.region->sm_ppm == 0);
}

void nobody_is_blamed_for_who_had_its_slot_before() {
    Bench bench(strict());
    const int a = bench.admission.join("a", Priority::best_effort, 0, 0, 0);
    const int b = bench.admission.join("b", Priority::best_effort, 0, 0, 0);
    const int sa = bench.admission.open_stream(a, 1);
    const int big = bench.kernel("big", 900'000, 900'000, 1000);
    bench.launch(a, sa, big, 0);
    const Ticket waits = bench.launch(b, bench.admission.open_stream(b, 1), big, 0);
    CHECK(bench.region->waiters[waits.waiter].blamed == a);
    bench.admission.leave(a, 100);
    CHECK(bench.region->waited_for_ns[b][a] == 100);
    for (int index = 0; index < kMaxClients; ++index) bench.admission.join("others", Priority::best_effort, 0, 0, 100);
    bench.look(5000);
    CHECK(bench.region->waited_for_ns[b][a] == 0);
}

// A process may die between any two stores. What it had half put in or taken out is not in flight, whatever an earlier owner
// of the slot left in the queue, and no stream is busy after its client has gone.
void a_change_left_half_done_is_repaired() {
    for (int torn = 0; torn < 3; ++torn) {
        Bench bench(strict());
        const int row = bench.kernel("k", 300'000, 300'000, 1000);
        const int before = bench.admission.join("before", Priority::best_effort, 0, 0, 0);
        const int stream = bench.admission.open_stream(before, 1);
        Stream& slot = bench.region->streams[stream];
        Ticket ticket;
        for (int index = 0; index < 5; ++index) {
            if (ticket.seq != 0) bench.end(stream, ticket.seq, 0);
            ticket = bench.launch(before, stream, row, 0);
        }
        const std::array<Queued, kQueue> former = slot.queue;
        bench.admission.leave(before, 1);
        slot.queue = former;  // an end by a build that does not wipe, or one whose wiping had not reached the memory
        const int client = bench.admission.join("client", Priority::best_effort, 0, 0, 2);
        CHECK(bench.admission.open_stream(client, 1) == stream);
        const Ticket first = bench.launch(client, stream, row, 2);
        CHECK(first.admitted());
        if (torn == 0) slot.first = (slot.first + 1) % kQueue;  // taken out, not yet counted
        if (torn == 1) ++slot.count;                            // counted, not yet put in
        if (torn == 2) slot.done = first.seq;                   // ended, not yet taken out
        repair(*bench.region);
        CHECK(slot.count == (torn == 1 ? 1 : 0));
        bench.admission.leave(client, 3);
        CHECK(slot.count == 0 && bench.region->clients_active == 0 && bench.region->sm_ppm == 0);
        for (const std::uint64_t word : bench.region->busy_streams) CHECK(word == 0);
    }
}

void a_profile_beyond_all_measure_is_cut() {
    Bench bench(strict());
    const int row = bench.kernel("odd", 5 * kWhole, -1, std::numeric_limits<Nanoseconds>::max());
    const Demand& demand = bench.region->kernels[row].demand;
    CHECK(demand.sm_ppm == kWhole && demand.bw_ppm == 0);
    const int client = bench.admission.join("a", Priority::best_effort, 0, 0, 0);
    const int stream = bench.admission.open_stream(client, 1);
    for (int index = 0; index < 2 * kQueue; ++index) bench.launch(client, stream, row, 0);
    CHECK(bench.region->streams[stream].queued_ns > 0);
}

// Random launches and ends: sums equal what is in flight, and nobody is over the limits beside others.
void random_histories_keep_the_invariants() {
    for (unsigned seed = 0; seed < 300; ++seed) {
        std::mt19937_64 random(seed);
        Config config = strict();
        config.alpha_ppm = 950'000;
        config.depth = 1 + static_cast<int>(random() % 3);
        const PolicyName policies[] = {PolicyName::interference, PolicyName::sequential, PolicyName::pair};
        config.policy = policies[seed % 6 < 4 ? 0 : seed % 6 - 3];
        Bench bench(config);
        std::vector<int> streams;
        const int clients = 2 + static_cast<int>(random() % 4);
        for (int client = 0; client < clients; ++client) {
            const Priority priority = random() % 2 == 0 ? Priority::high : Priority::best_effort;
            const int slot = bench.admission.join("c", priority, 0, 0, 0);
            const int count = 1 + static_cast<int>(random() % 3);
            for (int id = 0; id < count; ++id) streams.push_back(bench.admission.open_stream(slot, id));
        }
        std::vector<int> rows;
        for (int index = 0; index < 12; ++index) {
            rows.push_back(bench.kernel("k" + std::to_string(index), static_cast<Ppm>(random() % kWhole),
                                        static_cast<Ppm>(random() % kWhole), 1 + static_cast<int>(random() % 100'000)));
        }
        std::vector<int> waiter(streams.size(), -1);  // an inline gate: one launch a stream waits at most
        Nanoseconds now = 0;
        for (int step = 0; step < 2000; ++step) {
            now += static_cast<Nanoseconds>(random() % 20'000);
            const std::size_t pick = random() % streams.size();
            const int slot = streams[pick];
            Stream& stream = bench.region->streams[slot];
            if (random() % 2 == 0 && stream.count > 0) {
                bench.end(slot, stream.launched - random() % stream.count, now);
            } else if (waiter[pick] < 0) {
                const Ticket ticket = bench.launch(stream.client, slot, rows[random() % rows.size()], now);
                waiter[pick] = ticket.waiter;
            }
            for (std::size_t index = 0; index < streams.size(); ++index) {
                if (waiter[index] < 0 || bench.region->waiters[waiter[index]].state < 2) continue;
                bench.admission.take(waiter[index], now);
                waiter[index] = -1;
            }
            Ppm sm = 0;
            Ppm bw = 0;
            int active = 0;
            for (const Client& client : bench.region->clients) {
                sm += client.sm_ppm;
                bw += client.bw_ppm;
                active += client.streams_active > 0 ? 1 : 0;
            }
            CHECK(sm == bench.region->sm_ppm && bw == bench.region->bw_ppm);
            CHECK(active == bench.region->clients_active);
            if (active >= 2 && config.policy == PolicyName::interference) {
                CHECK(sm <= config.alpha_ppm);
                CHECK(bw <= config.beta_ppm);
            }
            if (config.policy == PolicyName::sequential) CHECK(active <= 1);
        }
        const Ppm sm = bench.region->sm_ppm;
        const int waiting = bench.region->waiting;
        repair(*bench.region);
        CHECK(bench.region->sm_ppm == sm);
        CHECK(bench.region->waiting == waiting);
    }
}

}  // namespace

int main() {
    a_client_alone_is_never_gated();
    complementary_kernels_run_together_and_rivals_do_not();
    the_best_group_is_found_among_waiting_heads();
    high_priority_never_waits_in_latency_mode();
    high_priority_goes_first_in_strict_mode();
    unknown_kernels_run_alone_until_learnt();
    a_roofline_gives_both_shares();
    an_old_launch_has_the_device_drained();
    a_client_that_leaves_frees_what_it_held();
    memory_has_a_cap();
    what_does_not_fit_passes_and_is_counted();
    overload_seen_corrects_the_profiles();
    best_effort_does_not_run_far_ahead_of_high_priority();
    the_end_of_an_iteration_lets_best_effort_go();
    strict_mode_starves_nobody();
    latency_mode_forces_after_the_longest_wait();
    own_depth_has_nobody_drained();
    an_unknown_kernel_of_high_priority_holds_best_effort_back();
    a_launch_of_a_client_that_left_touches_nobody();
    nobody_is_blamed_for_who_had_its_slot_before();
    a_change_left_half_done_is_repaired();
    a_profile_beyond_all_measure_is_cut();
    random_histories_keep_the_invariants();
    return check_result();
}
