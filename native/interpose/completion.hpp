// Who finds out that launches have ended: events behind them, one thread a process that asks the events, and whatever
// the program learns by synchronising.
#pragma once

#include "streams.hpp"

#include <pthread.h>

#include <atomic>
#include <deque>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace tierline::interpose {

struct Session;

// An event that was recorded: once it has come, all launches of the lane up to `seq` have ended.
struct Pending {
    Lane* lane;
    std::uint64_t seq;
    CUevent event;
    CUevent start;  // not null: a learning launch of `row` lies between the two
    int row;
};

class Completion {
public:
    explicit Completion(Session& session) : session_(session) {}

    // Records an event behind what is in the lane's stream now, in the launching thread. False when that failed; then
    // the lane owes it.
    bool watch(Lane& lane, bool per_thread);
    void add(const Pending& pending);
    // All up to `seq` have ended, by whatever way it was seen.
    void ended(Lane& lane, std::uint64_t seq);
    // Starts the poller once; does nothing where it runs.
    void start();
    void stop();
    // Waits, for a short while at most, until the poller has asked for all that has ended by now: before its events go.
    void catch_up();
    // Returns once the poller has seen what the caller marked as dead or closed (bounded).
    void step_back();

private:
    static void* run(void* self);
    void loop();
    void take_added();
    void fence(Lane& lane);
    void poll(Lane& lane, std::deque<Pending>& queue);
    void retire(Lane& lane);
    void finish(const Pending& pending, bool report);
    bool enter(Context& context);

    Session& session_;
    SpinLock lock_;
    std::vector<Pending> added_;
    std::atomic<int> state_{0};  // 0 not started, 1 runs, 2 is to stop, 3 has stopped
    pthread_t thread_{};
    std::atomic<std::uint64_t> rounds_{0};  // odd while the poller works

    // the poller's own
    std::vector<Lane*> lanes_;
    std::uint64_t lanes_serial_ = 0;
    std::unordered_map<Lane*, std::deque<Pending>> queues_;
    Context* entered_ = nullptr;
};

}  // namespace tierline::interpose
