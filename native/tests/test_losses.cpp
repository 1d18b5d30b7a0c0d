// What best effort costs high priority, on a made-up device whose truth is one number: how much of high priority's speed is
// lost while best effort runs.
#include "admission_bench.hpp"

#include <algorithm>

using namespace tierline;
using tierline::test::Bench;
using tierline::test::strict;

namespace {

constexpr Nanoseconds kLength = 100 * kMicrosecond;  // of each kernel, alone

struct Course {
    double lost_ns = 0.0;       // true
    double high_busy_ns = 0.0;
    double beside_ns = 0.0;     // best effort's time beside high priority's
    double low_in_pauses_ns = 0.0;
    double harm = 0.0;          // learnt
    Nanoseconds counted_lost_ns = 0;
    Nanoseconds most_at_once_ns = 0;
};

// High priority runs ten kernels an iteration, then pauses; best effort always has a launch to make.
Course run(double true_harm, Nanoseconds pause_ns, Nanoseconds duration_ns) {
    constexpr Nanoseconds kStep = 5 * kMicrosecond;
    constexpr int kKernels = 10;
    Bench bench(Config{});
    const int high = bench.admission.join("high", Priority::high, 0, 0, 0);
    const int low = bench.admission.join("low", Priority::best_effort, 0, 0, 0);
    const int sh = bench.admission.open_stream(high, 1);
    const int sl = bench.admission.open_stream(low, 1);
    const int kh = bench.kernel("high", 400'000, 400'000, kLength);
    const int kl = bench.kernel("low", 400'000, 400'000, kLength);
    Course course;
    double high_left_ns = 0.0;
    double low_left_ns = 0.0;
    int high_launched = 0;
    int waiter = -1;
    bool low_runs = false;
    std::uint64_t low_seq = 0;
    Nanoseconds resumes_ns = 0;
    bool high_runs = false;
    for (Nanoseconds now_ns = kStep; now_ns < duration_ns; now_ns += kStep) {
        if (high_runs) {
            course.high_busy_ns += kStep;
            high_left_ns -= kStep * (low_runs ? 1.0 - true_harm : 1.0);
            if (low_runs) course.lost_ns += kStep * true_harm;
            if (low_runs) course.beside_ns += kStep;
        } else if (low_runs) {
            course.low_in_pauses_ns += kStep;
        }
        if (low_runs) low_left_ns -= kStep;
        if (high_runs && high_left_ns <= 0.0) {
            high_runs = false;
            bench.end(sh, static_cast<std::uint64_t>(high_launched), now_ns);
            if (high_launched % kKernels == 0 && pause_ns > 0) {
                resumes_ns = now_ns + pause_ns;
                if (bench.admission.iteration_ended(high, now_ns)) bench.look(now_ns);
            }
        }
        if (!high_runs && now_ns >= resumes_ns) {
            CHECK(bench.launch(high, sh, kh, now_ns).admitted());
            ++high_launched;
            high_left_ns = kLength;
            high_runs = true;
        }
        if (low_runs && low_left_ns <= 0.0) {
            low_runs = false;
            bench.end(sl, low_seq, now_ns);
        }
        if (low_runs) continue;
        if (waiter < 0) {
            const Ticket ticket = bench.launch(low, sl, kl, now_ns);
            low_runs = ticket.admitted();
            low_seq = ticket.seq;
            waiter = ticket.waiter;
        }
        if (waiter >= 0 && bench.region->waiters[waiter].state == 1 && bench.admission.deadline_ns() <= now_ns) {
            bench.look(now_ns);
        }
        if (waiter >= 0 && bench.region->waiters[waiter].state != 1) {
            low_seq = bench.admission.take(waiter, now_ns).seq;
            waiter = -1;
            low_runs = true;
        }
        if (low_runs) low_left_ns = kLength;
    }
    course.harm = bench.region->kernels[kl].harm;
    course.counted_lost_ns = bench.region->clients[high].statistics.lost_ns;
    const Nanoseconds iteration_ns = bench.region->clients[high].iteration_ns;
    course.most_at_once_ns = iteration_ns == 0 ? 300 * kMicrosecond : iteration_ns * 3 / 100;
    return course;
}

void what_does_no_harm_runs_beside_high_priority() {
    const Course course = run(0.0, 0, kSecond);
    CHECK(course.harm < 0.05);
    CHECK(course.beside_ns > 0.8 * course.high_busy_ns);
    CHECK(course.lost_ns == 0.0);
}

// The long run: what is lost is the allowed share of high priority's time, what the account may hold, and what one launch
// cost before its harm was known.
void check_bound(const Course& course, Nanoseconds duration_ns) {
    CHECK_LE(course.lost_ns, 0.03 * double(duration_ns) + double(course.most_at_once_ns) + double(kLength));
    CHECK_GT(course.lost_ns, 0.0);
}

void what_harms_is_kept_within_the_slowdown_limit() {
    const Course course = run(0.8, 0, 2 * kSecond);
    CHECK_GT(course.harm, 0.4);
    check_bound(course, 2 * kSecond);
    CHECK_LT(course.beside_ns, 0.1 * course.high_busy_ns);
    // The account sees what there is to see.
    CHECK_GT(double(course.counted_lost_ns), 0.8 * course.lost_ns);
    CHECK_LT(double(course.counted_lost_ns), 1.2 * course.lost_ns);
}

void what_harms_is_put_off_to_pauses() {
    const Course course = run(0.8, kMillisecond, 2 * kSecond);
    CHECK_GT(course.harm, 0.4);
    check_bound(course, 2 * kSecond);
    CHECK_GT(course.low_in_pauses_ns, 5.0 * course.beside_ns);
}

// One in between: as much of it as is allowed, and no more.
void what_harms_a_little_is_rationed() {
    const Course course = run(0.3, 0, 2 * kSecond);
    check_bound(course, 2 * kSecond);
    CHECK_GT(course.lost_ns, 0.01 * course.high_busy_ns);
}

struct Two {
    Bench bench;
    int high, low, sh, sl, kh, kl;
    explicit Two(const Config& config, Ppm share) : bench(config) {
        high = bench.admission.join("high", Priority::high, 0, 0, 0);
        low = bench.admission.join("low", Priority::best_effort, 0, 0, 0);
        sh = bench.admission.open_stream(high, 1);
        sl = bench.admission.open_stream(low, 1);
        kh = bench.kernel("high", 600'000, 600'000, kLength);
        kl = bench.kernel("low", share, share, 10 * kMicrosecond);
    }
    LossAccount& losses() { return bench.region->losses; }
    // High priority runs `count` kernels by itself, as predicted.
    Nanoseconds alone(int count, Nanoseconds now_ns) {
        for (int index = 0; index < count; ++index) {
            const Ticket ticket = bench.launch(high, sh, kh, now_ns);
            now_ns += kLength;
            bench.end(sh, ticket.seq, now_ns);
        }
        return now_ns;
    }
};

void undisturbed_work_fills_the_account_and_idle_time_pays_debts_only() {
    Two two(Config{}, 100'000);
    Nanoseconds now_ns = two.alone(50, 0);
    const Nanoseconds earned_ns = two.losses().balance_ns;
    CHECK(earned_ns == 50 * (kLength * 3 / 100));
    now_ns = two.alone(1000, now_ns);
    CHECK(two.losses().balance_ns == 300 * kMicrosecond);  // no more than may be spent at once
    // Idle time, seen when somebody looks: it adds nothing to what is there, and pays what is owed.
    Bench& bench = two.bench;
    const auto look_after = [&](Nanoseconds idle_ns) {
        now_ns += idle_ns;
        Ticket ticket = bench.launch(two.low, two.sl, two.kl, now_ns);
        if (!ticket.admitted()) ticket = bench.admission.take(ticket.waiter, now_ns);
        bench.end(two.sl, ticket.seq, now_ns);
    };
    look_after(10 * kMillisecond);
    CHECK(two.losses().balance_ns == 300 * kMicrosecond);
    two.losses().balance_ns = -kMillisecond;
    look_after(10 * kMillisecond);
    CHECK(two.losses().balance_ns > -kMillisecond && two.losses().balance_ns <= -kMillisecond + 301 * kMicrosecond);
    look_after(kSecond);
    CHECK(two.losses().balance_ns == 0);
}

void what_fits_nowhere_is_spared_in_latency_mode_only() {
    for (const Mode mode : {Mode::latency, Mode::strict}) {
        Config config;
        config.mode = mode;
        config.budget_ns = kSecond;
        Two two(config, 600'000);
        Bench& bench = two.bench;
        const Nanoseconds now_ns = two.alone(100, 0);
        bench.launch(two.high, two.sh, two.kh, now_ns);
        const Ticket ticket = bench.launch(two.low, two.sl, two.kl, now_ns);
        CHECK(!ticket.admitted());
        const Nanoseconds later_ns = now_ns + 25 * kMicrosecond;  // its own length and a little
        if (mode == Mode::latency) CHECK(bench.admission.deadline_ns() <= later_ns);
        bench.look(later_ns);
        const Waiter& waiter = bench.region->waiters[ticket.waiter];
        CHECK(waiter.reason == (mode == Mode::latency ? Reason::spared : Reason::bw_limit));
        CHECK(bench.region->clients[two.low].statistics.excess == (mode == Mode::latency ? 1u : 0u));
    }
}

void an_overdrawn_account_spares_nothing() {
    Two two(Config{}, 600'000);
    Bench& bench = two.bench;
    const Nanoseconds now_ns = two.alone(100, 0);
    two.losses().balance_ns = -1;
    bench.launch(two.high, two.sh, two.kh, now_ns);
    const Ticket ticket = bench.launch(two.low, two.sl, two.kl, now_ns);
    bench.look(now_ns + 50 * kMicrosecond);
    CHECK(bench.region->waiters[ticket.waiter].reason == Reason::slowdown_limit);
}

// A launch far longer than high priority's iterations waits while those may come back at any time, and goes once high
// priority has been away for some times its length: an idle device is given away.
void an_idle_device_is_given_away_to_long_launches_too() {
    Two two(Config{}, 100'000);
    Bench& bench = two.bench;
    Nanoseconds now_ns = two.alone(1, 0);
    bench.admission.iteration_ended(two.high, now_ns);
    const int lasting = bench.kernel("lasting", 100'000, 100'000, 20 * kMillisecond);
    const Nanoseconds began_ns = now_ns;
    const Ticket ticket = bench.launch(two.low, two.sl, lasting, now_ns);
    CHECK(!ticket.admitted());
    while (bench.region->waiters[ticket.waiter].state == 1 && now_ns < 20 * kSecond) {
        now_ns = std::max(now_ns + 1, bench.admission.deadline_ns());
        bench.look(now_ns);
    }
    CHECK(bench.admission.take(ticket.waiter, now_ns).reason == Reason::fits);
    CHECK(now_ns - began_ns > 20 * kMillisecond);
    CHECK(now_ns - began_ns < kSecond);
}

// Ended by the death of its client, a launch no longer counts as company.
void shadows_end_with_their_client() {
    Two two(Config{}, 100'000);
    Bench& bench = two.bench;
    Nanoseconds now_ns = two.alone(100, 0);
    const Ticket running = bench.launch(two.high, two.sh, two.kh, now_ns);
    CHECK(bench.launch(two.low, two.sl, two.kl, now_ns).admitted());
    const std::uint64_t clean = bench.region->clients[two.high].clean_samples;
    now_ns += kLength;
    bench.end(two.sh, running.seq, now_ns);
    CHECK(bench.region->clients[two.high].clean_samples == clean);  // it had company
    bench.admission.leave(two.low, now_ns);
    two.alone(1, now_ns);
    CHECK(bench.region->clients[two.high].clean_samples == clean + 1);
}

// A process died between taking a launch out of its queue and saying so here.
void repair_ends_shadows_of_what_does_not_run() {
    Two two(Config{}, 100'000);
    Bench& bench = two.bench;
    const Nanoseconds now_ns = two.alone(100, 0);
    CHECK(bench.launch(two.low, two.sl, two.kl, now_ns).admitted());
    const auto casting = [&] {
        return std::count_if(two.losses().shadows.begin(), two.losses().shadows.end(),
                             [](const Shadow& shadow) { return shadow.kernel >= 0 && shadow.ends_ns == 0; });
    };
    repair(*bench.region);
    CHECK(casting() == 1);
    bench.region->streams[two.sl].count = 0;
    repair(*bench.region);
    CHECK(casting() == 0);
}

// The exempt are not held and not watched; they still explain what high priority lost meanwhile.
void exempt_launches_cast_a_shadow_of_predicted_length() {
    Two two(Config{}, 100'000);
    Bench& bench = two.bench;
    const Nanoseconds now_ns = two.alone(100, 0);
    const std::uint64_t clean = bench.region->clients[two.high].clean_samples;
    CHECK(bench.admission.request({two.low, two.sl, two.kl, true}, now_ns).reason == Reason::bypassed);
    two.alone(2, now_ns);
    CHECK(bench.region->clients[two.high].clean_samples == clean + 1);  // the second came after its end
}

}  // namespace

int main() {
    what_does_no_harm_runs_beside_high_priority();
    what_harms_is_kept_within_the_slowdown_limit();
    what_harms_is_put_off_to_pauses();
    what_harms_a_little_is_rationed();
    undisturbed_work_fills_the_account_and_idle_time_pays_debts_only();
    what_fits_nowhere_is_spared_in_latency_mode_only();
    an_overdrawn_account_spares_nothing();
    an_idle_device_is_given_away_to_long_launches_too();
    shadows_end_with_their_client();
    repair_ends_shadows_of_what_does_not_run();
    exempt_launches_cast_a_shadow_of_predicted_length();
    return check_result();
}
