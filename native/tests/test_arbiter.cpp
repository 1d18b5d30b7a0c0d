// The gate with real threads and processes: nobody is lost, nobody is over, the dead are reaped.
#include "check.hpp"
#include "tierline/arbiter.hpp"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

using namespace tierline;

namespace {

Config strict() {
    Config config;
    config.mode = Mode::strict;
    config.alpha_ppm = config.beta_ppm = kWhole;
    config.drain_after_ns = 2 * kMillisecond;
    return config;
}

int known_kernel(Arbiter& arbiter, const char* name, Ppm sm, Ppm bw) {
    KernelFacts facts;
    facts.name = name;
    const int row = arbiter.add_kernel(kernel_key(name, {1, 1, 1}, {1, 1, 1}, 0), facts);
    arbiter.set_profile(row, {sm, bw, 132, 20'000}, Source::counters);
    return row;
}

void threads_of_one_process_share_the_device() {
    Arbiter arbiter(MappedRegion::in_memory(strict()));
    const int compute = known_kernel(arbiter, "compute", 700'000, 200'000);
    const int memory = known_kernel(arbiter, "memory", 200'000, 700'000);
    constexpr int kThreads = 6;
    constexpr int kLaunches = 400;
    std::atomic<int> sm{0};
    std::atomic<int> overs{0};
    std::vector<std::thread> threads;
    for (int index = 0; index < kThreads; ++index) {
        threads.emplace_back([&, index] {
            const int client = arbiter.join("t" + std::to_string(index), index == 0 ? Priority::high : Priority::best_effort, 0);
            const int stream = arbiter.open_stream(client, 7);
            const int row = index % 2 == 0 ? compute : memory;
            const int share = index % 2 == 0 ? 700'000 : 200'000;
            for (int launch = 0; launch < kLaunches; ++launch) {
                const Ticket ticket = arbiter.admit({client, stream, row, false});
                if (sm.fetch_add(share) + share > kWhole) ++overs;
                if (launch % 8 == 0) usleep(1);
                sm.fetch_sub(share);
                arbiter.completed(stream, ticket.seq);
            }
            arbiter.leave(client);
        });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(overs == 0);
    CHECK(arbiter.region().sm_ppm == 0 && arbiter.region().waiting == 0 && arbiter.region().clients_active == 0);
    CHECK(arbiter.region().peak_sm_ppm <= kWhole);
    std::uint64_t launches = 0;
    for (int slot = 0; slot < kThreads; ++slot) launches += arbiter.region().clients[slot].statistics.launches;
    CHECK(launches == kThreads * kLaunches);
}

std::string file_name(const char* what) {
    return "/tmp/tierline-test-arbiter-" + std::string(what) + "-" + std::to_string(getpid());
}

// A client killed while it holds the device, and one killed again and again at any moment, also inside the lock.
void a_killed_client_is_reaped() {
    const std::string path = file_name("killed");
    char error[256] = "";
    MappedRegion region = MappedRegion::create(path.c_str(), strict(), error, sizeof error);
    CHECK(static_cast<bool>(region));
    Arbiter arbiter(std::move(region));
    const int big = known_kernel(arbiter, "big", 900'000, 900'000);
    const int own = arbiter.join("parent", Priority::best_effort, 0);
    const int stream = arbiter.open_stream(own, 1);
    for (int round = 0; round < 30; ++round) {
        int ready[2];
        CHECK(pipe(ready) == 0);
        const pid_t child = fork();
        if (child == 0) {
            char why[256];
            Arbiter mine(MappedRegion::open(path.c_str(), true, why, sizeof why));
            const int client = mine.join("child", Priority::best_effort, 0);
            const int slot = mine.open_stream(client, 1);
            mine.admit({client, slot, big, false});  // and never completes it
            CHECK(write(ready[1], "x", 1) == 1);
            if (round % 2 == 0) pause();
            while (true) {
                const int other = mine.open_stream(client, 2);
                const Ticket ticket = mine.admit({client, other, big, false});
                mine.completed(other, ticket.seq);
            }
        }
        char byte;
        CHECK(read(ready[0], &byte, 1) == 1);
        if (round % 2 == 1) usleep(static_cast<useconds_t>(200 * round));
        kill(child, SIGKILL);
        int status = 0;
        waitpid(child, &status, 0);
        const Ticket ticket = arbiter.admit({own, stream, big, false});  // waits until the dead one was noticed
        CHECK(ticket.reason != Reason::forced);
        arbiter.completed(stream, ticket.seq);
        CHECK(arbiter.region().sm_ppm == 0);
        close(ready[0]);
        close(ready[1]);
    }
    CHECK(arbiter.region().reaped >= 30);
    unlink(path.c_str());
}

// A process stopped inside the lock (Ctrl-Z) holds nobody up for good: launches pass, and are managed again once it is gone.
void a_process_stopped_inside_the_lock_stops_nobody() {
    const std::string path = file_name("stopped");
    char error[256] = "";
    MappedRegion region = MappedRegion::create(path.c_str(), strict(), error, sizeof error);
    CHECK(static_cast<bool>(region));
    Arbiter arbiter(std::move(region));
    const int row = known_kernel(arbiter, "k", 900'000, 900'000);
    const int own = arbiter.join("parent", Priority::high, 0);
    const int stream = arbiter.open_stream(own, 1);
    int ready[2];
    CHECK(pipe(ready) == 0);
    const pid_t child = fork();
    if (child == 0) {
        char why[256];
        const MappedRegion mine = MappedRegion::open(path.c_str(), true, why, sizeof why);
        pthread_mutex_lock(&mine->mutex);
        if (write(ready[1], "x", 1) == 1) pause();
        _exit(0);
    }
    char byte;
    CHECK(read(ready[0], &byte, 1) == 1);
    for (int launch = 0; launch < 1000; ++launch) {
        const Ticket ticket = arbiter.admit({own, stream, row, false});
        CHECK(ticket.admitted() && ticket.reason == Reason::overflowed && ticket.seq == 0);
        arbiter.completed(stream, 1);
    }
    kill(child, SIGKILL);
    int status = 0;
    waitpid(child, &status, 0);
    CHECK(arbiter.admit({own, stream, row, false}).seq == 1);
    CHECK(arbiter.region().repairs == 1);
    close(ready[0]);
    close(ready[1]);
    unlink(path.c_str());
}

// exec leaves process number and start time as they were: what the process was before cannot be found dead by others.
void a_process_ends_what_it_was_before_exec() {
    Arbiter arbiter(MappedRegion::in_memory(strict()));
    const int row = known_kernel(arbiter, "k", 900'000, 900'000);
    const int before = arbiter.join("before", Priority::best_effort, 0);
    arbiter.admit({before, arbiter.open_stream(before, 1), row, false});
    arbiter.region().clients[arbiter.join("neighbour", Priority::best_effort, 0)].pid = 1;
    CHECK(arbiter.region().sm_ppm == 900'000);
    arbiter.leave_former_selves();
    CHECK(arbiter.region().sm_ppm == 0);
    CHECK(arbiter.region().clients_joined == 1);
    CHECK(arbiter.region().reaped == 1);
}

// A policy that wants to look again is asked again, though nothing else happens: without that a waiting thread would only
// look as often as it looks for the dead (50 ms).
void policies_look_again_when_they_want_to() {
    Config config;
    config.policy = PolicyName::tgs;
    config.depth_ns = kSecond;
    Arbiter arbiter(MappedRegion::in_memory(config));
    const int row = known_kernel(arbiter, "k", 100'000, 100'000);
    const int high = arbiter.join("high", Priority::high, 0);
    const int low = arbiter.join("low", Priority::best_effort, 0);
    arbiter.admit({high, arbiter.open_stream(high, 1), row, false});
    const int stream = arbiter.open_stream(low, 1);
    for (int launch = 0; launch < 12; ++launch) {  // 100 tokens a second at first
        const Ticket ticket = arbiter.admit({low, stream, row, false});
        CHECK(ticket.admitted() && ticket.reason == Reason::fits);
        arbiter.completed(stream, ticket.seq);
    }
    const ClientStatistics& statistics = arbiter.region().clients[low].statistics;
    std::uint64_t short_waits = 0;  // under 2^25 ns = 34 ms
    for (int bucket = 0; bucket < 25; ++bucket) short_waits += statistics.waits.count[bucket];
    CHECK(statistics.waited > 0);
    CHECK(short_waits > 0);
}

void a_region_of_another_kind_is_refused() {
    const std::string path = file_name("foreign");
    std::FILE* file = std::fopen(path.c_str(), "w");
    std::fputs("not a region", file);
    std::fclose(file);
    char error[256] = "";
    const MappedRegion opened = MappedRegion::open(path.c_str(), true, error, sizeof error);
    CHECK(!opened);
    CHECK(std::strstr(error, "not a region of this version") != nullptr);
    unlink(path.c_str());
    const MappedRegion missing = MappedRegion::open(path.c_str(), false, error, sizeof error);
    CHECK(!missing);
    CHECK(std::strstr(error, "No such file") != nullptr);
}

// What nobody ever ends is forced through after the longest wait, and counted.
void nobody_waits_for_ever() {
    Config config = strict();
    config.max_wait_ns = 30 * kMillisecond;
    Arbiter arbiter(MappedRegion::in_memory(config));
    const int big = known_kernel(arbiter, "spins", 900'000, 900'000);
    const int a = arbiter.join("a", Priority::best_effort, 0);
    const int b = arbiter.join("b", Priority::best_effort, 0);
    arbiter.admit({a, arbiter.open_stream(a, 1), big, false});
    const Ticket ticket = arbiter.admit({b, arbiter.open_stream(b, 1), big, false});
    CHECK(ticket.reason == Reason::forced);
    CHECK(arbiter.region().clients[b].statistics.forced == 1);
}

void fences_are_wanted_behind_untracked_work() {
    Arbiter arbiter(MappedRegion::in_memory(strict()));
    const int big = known_kernel(arbiter, "big", 900'000, 900'000);
    const int a = arbiter.join("a", Priority::high, 0);
    const int stream = arbiter.open_stream(a, 1);
    CHECK(arbiter.wants_fence(stream) == 0);
    arbiter.admit({a, stream, big, false});
    arbiter.admit({a, stream, big, false});
    CHECK(!arbiter.contended());
    CHECK(arbiter.wants_fence(stream) == 2);
    CHECK(arbiter.wants_fence(stream) == 0);
    const std::uint32_t seen = arbiter.attention();
    std::thread other([&] {
        const int b = arbiter.join("b", Priority::best_effort, 0);
        const Ticket ticket = arbiter.admit({b, arbiter.open_stream(b, 1), big, false});
        CHECK(ticket.track);
    });
    while (arbiter.await_attention(seen, kSecond) == seen) {
    }
    CHECK(arbiter.contended());
    arbiter.completed(stream, 2);
    other.join();
}

}  // namespace

int main() {
    threads_of_one_process_share_the_device();
    a_killed_client_is_reaped();
    a_process_stopped_inside_the_lock_stops_nobody();
    a_process_ends_what_it_was_before_exec();
    policies_look_again_when_they_want_to();
    a_region_of_another_kind_is_refused();
    nobody_waits_for_ever();
    fences_are_wanted_behind_untracked_work();
    return check_result();
}
