// Which client a stream belongs to, and how far its launches have come.
#pragma once

#include "abi/cuda.hpp"
#include "spin_lock.hpp"
#include "tierline/arbiter.hpp"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

namespace tierline::interpose {

struct Session;

struct Client {
    int slot = -1;  // in the region
    Priority priority = Priority::best_effort;
    std::int64_t memory_cap_bytes = 0;
    std::atomic<std::int64_t> memory_bytes{0};
    std::atomic<bool> ended{false};
    int tag_before = 0;  // of the thread that began it
};

// Events of one context, made in batches and used again.
class Context {
public:
    Context(CUcontext handle, CUdevice device, bool managed) : handle(handle), device(device), managed(managed) {}
    // Null when the driver has none to give. `timed`: keeps time stamps.
    CUevent take_event(bool timed);
    void give_back(CUevent event, bool timed);

    const CUcontext handle;
    const CUdevice device;  // -1 = unknown
    const bool managed;  // on the device that this session manages
    std::atomic<bool> dead{false};

private:
    SpinLock lock_;
    std::vector<CUevent> free_[2];
};

struct Lane;

// A stream of the program. Never freed while the session lives, so that caches may point at it.
struct StreamEntry {
    CUstream handle = nullptr;  // what to hand to the driver
    bool default_per_thread = false;  // the default stream of one thread: only that thread can record into it
    std::uint64_t thread = 0;         // its number then
    Context* context = nullptr;
    Client* bound = nullptr;    // by tierline_bind_stream
    Client* owner = nullptr;    // who used it under a tag, else who made it
    std::uint64_t number = 0;
    std::vector<Lane*> lanes;   // one per client that used it
    std::atomic<bool> capturing{false};
    std::atomic<bool> closed{false};
    std::atomic<int> joining{0};  // threads that may just now draw it into a capture
    // A fence is being recorded by the poller. Begin of capture, joining and destruction raise their own flag first and
    // then wait until this is false; the poller raises it first and then looks at theirs.
    std::atomic<bool> fencing{false};
};

// Launches of one client into one stream, numbered by the region from 1 on without gaps.
struct Lane {
    Client* client = nullptr;
    StreamEntry* stream = nullptr;
    std::atomic<int> slot{-1};  // in the region; -1 = it had no room, launches pass and are counted

    std::atomic<int> in_call{0};            // threads between asking and having launched
    std::atomic<std::uint64_t> covered{0};  // all up to this one are in the stream: an event now covers them
    std::atomic<std::uint64_t> watched{0};  // newest number that a recorded event will tell
    std::atomic<std::uint64_t> done{0};     // all up to this one have ended, as told to the region
    std::atomic<std::uint64_t> owed{0};     // an event that covers this one is wanted; the poller records it
    std::atomic<bool> retired{false};       // its stream is gone: closed in the region once all of it has ended

    bool owes() const { return owed.load() > std::max(watched.load(), done.load()); }
    void owe(std::uint64_t seq);

    // A launch has returned (or failed). Gives what is covered now.
    std::uint64_t returned(std::uint64_t seq);

private:
    SpinLock lock_;
    std::uint64_t count_ = 0;
    std::uint64_t highest_ = 0;
};

class Streams {
public:
    explicit Streams(Session& session) : session_(session) {}

    // The lane for a launch of this thread, or null when the stream lies on a device that is not managed.
    Lane* lane(CUstream stream, bool per_thread);
    // The lane if there is one; makes none.
    Lane* existing_lane(CUstream stream, bool per_thread);
    void created(CUstream stream);
    void bind(CUstream stream, Client* client);
    // Before the driver destroys it: from now on the poller records nothing into it. Gives its lanes.
    std::vector<Lane*> closing(CUstream stream);
    // The entry of a stream, made when new. Null only without a current context.
    StreamEntry* entry(CUstream stream, bool per_thread);
    Context* context(CUcontext handle);
    void drop_context(CUcontext handle);
    void drop_device(CUdevice device);
    void drop_client(Client* client);
    // All lanes, for the poller; `serial` grows whenever there are more.
    std::uint64_t serial() const { return serial_.load(std::memory_order_acquire); }
    std::vector<Lane*> lanes();
    // The calling thread ends: so does its default stream.
    void thread_ends(std::uint64_t number);
    // The region no longer knows the lane.
    void retire(Lane* lane);

private:
    struct Key {
        std::uintptr_t handle;
        std::uint64_t place;  // context and thread of the two default streams, else 0
        bool operator==(const Key& other) const { return handle == other.handle && place == other.place; }
    };
    struct Hash {
        std::size_t operator()(const Key& key) const { return key.handle * 0x9e3779b97f4a7c15ULL ^ key.place; }
    };

    Key key_of(CUstream stream, bool per_thread) const;
    Lane* lane_of(StreamEntry& entry, Client* client);
    template <class Which>
    void drop_contexts(const Which& which);

    Session& session_;
    std::mutex mutex_;
    std::unordered_map<Key, StreamEntry*, Hash> entries_;
    std::unordered_map<CUcontext, Context*> contexts_;
    std::vector<Lane*> lanes_;
    std::uint64_t made_ = 0;
    std::atomic<std::uint64_t> serial_{0};
};

// Grows whenever a cached lane may be wrong: a binding, a destroyed stream, an ended client, a fork.
extern std::atomic<std::uint64_t> g_lane_generation;

// The context that is current in this thread. Asks the driver only when a hook did not see it set.
CUcontext current_context();

}  // namespace tierline::interpose
