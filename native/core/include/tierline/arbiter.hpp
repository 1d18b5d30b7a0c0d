// The gate as a program sees it: an admission under a lock, with threads that wait on futexes. One class serves threads
// of one process (private region) and several processes (a region in a file).
#pragma once

#include "tierline/admission.hpp"

namespace tierline {

Nanoseconds monotonic_ns();

class Arbiter {
public:
    explicit Arbiter(MappedRegion region) : mapped_(static_cast<MappedRegion&&>(region)), admission_(*mapped_) {}

    // Call before the first `join` of a program: ends clients of one that this process was before it called exec, which
    // cannot be told from a living one by others.
    void leave_former_selves();
    // -1 when there is no room, or the region's lock is not to be had.
    int join(std::string_view label, Priority priority, std::int64_t memory_cap_bytes);
    void leave(int client);
    int open_stream(int client, std::uint64_t id);
    void close_stream(int stream);
    int find_kernel(std::uint64_t key);  // without the lock: rows are published once and never move
    int add_kernel(std::uint64_t key, const KernelFacts& facts);
    void set_profile(int kernel, const Demand& demand, Source source);
    // What is known of a kernel now, both parts of the same moment.
    struct Knowledge {
        Demand demand;
        Source source;
    };
    Knowledge knowledge_of(int kernel);

    // Returns once the launch may go; blocks the calling thread until then, never longer than `max_wait_ns` plus the
    // time to be scheduled. The ticket is always admitted; `overflowed` when the region does not know of it.
    Ticket admit(const Request& request);
    // The launch failed after it was admitted: as if it had ended.
    void cancel(const Ticket& ticket);
    void completed(int stream, std::uint64_t seq);
    void learned(int kernel, Nanoseconds duration_ns);
    void iteration_ended(int client);
    bool reserve_memory(int client, std::int64_t bytes);
    void release_memory(int client, std::int64_t bytes);

    // For pollers. Waits until fences may be wanted: returns when `attention` differs from `seen`, or after `timeout_ns`.
    std::uint32_t await_attention(std::uint32_t seen, Nanoseconds timeout_ns);
    std::uint32_t attention() const { return mapped_->attention.load(std::memory_order_acquire); }
    // Has the pollers look now.
    void call_attention();
    // More than one client has work or somebody waits: fences are wanted behind untracked launches.
    bool contended() const { return mapped_->contended.load(std::memory_order_acquire) != 0; }
    // Newest launch of the stream that no event watches yet, 0 = all are watched or done. Marks it as watched.
    std::uint64_t wants_fence(int stream);
    // Ends clients whose process is gone. Called by pollers and by waiting threads now and then.
    void reap();

    Region& region() { return *mapped_; }
    // In a forked child: the parent's client is not ours.
    void forget() { mapped_.release(); }

private:
    class Lock;
    void settle(Nanoseconds now_ns, int awake = -1);

    MappedRegion mapped_;
    Admission admission_;
    std::atomic<bool> stuck_{false};  // the lock was waited for in vain: it is only tried until it is to be had again
};

}  // namespace tierline
