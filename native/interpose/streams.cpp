#include "streams.hpp"

#include "driver.hpp"
#include "guarded.hpp"
#include "session.hpp"
#include "thread.hpp"

#include <algorithm>
#include <chrono>
#include <thread>

namespace tierline::interpose {

std::atomic<std::uint64_t> g_lane_generation{1};

namespace {

constexpr int kEventBatch = 32;
constexpr int kTriesForRoom = 100;
constexpr std::chrono::microseconds kRoomNap{100};
constexpr std::uintptr_t kLegacy = 1;
constexpr std::uintptr_t kPerThread = 2;

std::atomic<std::uint64_t> g_threads{0};

std::uint64_t thread_number() {
    if (t_thread.number == 0) t_thread.number = g_threads.fetch_add(1, std::memory_order_relaxed) + 1;
    return t_thread.number;
}

std::uintptr_t plain_handle(CUstream stream, bool per_thread) {
    const auto handle = reinterpret_cast<std::uintptr_t>(stream);
    return handle != 0 ? handle : per_thread ? kPerThread : kLegacy;
}

// Lives in a thread that used its default stream, until that thread ends.
struct ThreadEnd {
    ~ThreadEnd() {
        Session* session = session_if_any();
        if (session == nullptr || switched_off()) return;
        const Inside inside;
        guarded([&] { session->streams.thread_ends(t_thread.number); });
    }
    void keep() {}
};
thread_local ThreadEnd t_end;

// Makes a context current for some calls and puts back what was.
class Entered {
public:
    explicit Entered(CUcontext context) {
        if (context == nullptr || current_context() == context) return;
        pushed_ = driver()->cuCtxPushCurrent_v2(context) == CUDA_SUCCESS;
    }
    ~Entered() {
        CUcontext ignored = nullptr;
        if (pushed_) driver()->cuCtxPopCurrent_v2(&ignored);
    }
    Entered(const Entered&) = delete;
    Entered& operator=(const Entered&) = delete;

private:
    bool pushed_ = false;
};

}  // namespace

CUcontext current_context() {
    if (!t_thread.context_known) {
        t_thread.context = nullptr;
        if (driver()->cuCtxGetCurrent != nullptr) driver()->cuCtxGetCurrent(&t_thread.context);
        t_thread.context_known = true;
    }
    return t_thread.context;
}

CUevent Context::take_event(bool timed) {
    {
        const std::lock_guard<SpinLock> guard(lock_);
        std::vector<CUevent>& free = free_[timed ? 1 : 0];
        if (!free.empty()) {
            CUevent event = free.back();
            free.pop_back();
            return event;
        }
    }
    if (dead.load(std::memory_order_acquire)) return nullptr;
    const RelaxedCapture relaxed;
    const Entered entered(handle);
    CUevent made[kEventBatch] = {};
    int count = 0;
    const int wanted = timed ? 2 : kEventBatch;
    while (count < wanted && driver()->cuEventCreate != nullptr &&
           driver()->cuEventCreate(&made[count], timed ? CU_EVENT_DEFAULT : CU_EVENT_DISABLE_TIMING) == CUDA_SUCCESS) {
        ++count;
    }
    if (count == 0) return nullptr;
    const std::lock_guard<SpinLock> guard(lock_);
    free_[timed ? 1 : 0].insert(free_[timed ? 1 : 0].end(), made + 1, made + count);
    return made[0];
}

void Context::give_back(CUevent event, bool timed) {
    if (event == nullptr) return;
    const std::lock_guard<SpinLock> guard(lock_);
    free_[timed ? 1 : 0].push_back(event);
}

Streams::Key Streams::key_of(CUstream stream, bool per_thread) const {
    Key key{plain_handle(stream, per_thread), 0};
    if (key.handle == kLegacy || key.handle == kPerThread) {
        key.place = reinterpret_cast<std::uintptr_t>(current_context());
        if (key.handle == kPerThread) key.place ^= thread_number() << 48;
    }
    return key;
}

Context* Streams::context(CUcontext handle) {
    if (handle == nullptr) return nullptr;
    {
        const std::lock_guard<std::mutex> guard(mutex_);
        const auto found = contexts_.find(handle);
        if (found != contexts_.end()) return found->second;
    }
    CUdevice device = -1;
    bool known = false;
    {
        const Entered entered(handle);
        known = driver()->cuCtxGetDevice != nullptr && driver()->cuCtxGetDevice(&device) == CUDA_SUCCESS;
    }
    const std::lock_guard<std::mutex> guard(mutex_);
    Context*& entry = contexts_[handle];
    if (entry == nullptr) entry = new Context(handle, device, !known || device == session_.device);
    return entry;
}

StreamEntry* Streams::entry(CUstream stream, bool per_thread) {
    const Key key = key_of(stream, per_thread);
    const bool is_default = key.handle == kLegacy || key.handle == kPerThread;
    {
        const std::lock_guard<std::mutex> guard(mutex_);
        const auto found = entries_.find(key);
        if (found != entries_.end()) return found->second;
    }
    CUcontext handle = nullptr;
    if (!is_default && driver()->cuStreamGetCtx != nullptr) {
        const RelaxedCapture relaxed;
        if (driver()->cuStreamGetCtx(stream, &handle) != CUDA_SUCCESS) handle = nullptr;
    }
    if (handle == nullptr) handle = current_context();
    if (handle == nullptr) return nullptr;
    Context* where = context(handle);
    const std::lock_guard<std::mutex> guard(mutex_);
    StreamEntry*& made = entries_[key];
    if (made != nullptr) return made;
    made = new StreamEntry;
    made->handle = reinterpret_cast<CUstream>(key.handle);
    made->default_per_thread = key.handle == kPerThread;
    if (made->default_per_thread) {
        made->thread = thread_number();
        t_end.keep();  // made by being touched
    }
    made->context = where;
    made->number = ++made_;
    return made;
}

Lane* Streams::lane_of(StreamEntry& entry, Client* client) {
    std::unique_lock<std::mutex> guard(mutex_);
    int slot = -1;
    for (int tries = 0; tries < kTriesForRoom; ++tries) {
        for (Lane* lane : entry.lanes) {
            if (lane->client == client) return lane;
        }
        if (client->ended.load()) break;
        slot = session_.arbiter.open_stream(client->slot, entry.number);
        const bool leaving = std::any_of(lanes_.begin(), lanes_.end(), [](const Lane* lane) {
            return lane->retired.load(std::memory_order_acquire) && lane->slot.load() >= 0;
        });
        if (slot >= 0 || !leaving) break;
        // The region is full of streams that are destroyed already: the poller is about to see their ends.
        guard.unlock();
        session_.arbiter.call_attention();
        std::this_thread::sleep_for(kRoomNap);
        guard.lock();
    }
    auto* lane = new Lane;
    lane->client = client;
    lane->stream = &entry;
    lane->slot = slot;
    entry.lanes.push_back(lane);
    lanes_.push_back(lane);
    serial_.fetch_add(1, std::memory_order_release);
    return lane;
}

Lane* Streams::lane(CUstream stream, bool per_thread) {
    const std::uintptr_t handle = plain_handle(stream, per_thread);
    LaneCache& cached = t_thread.lanes[(handle >> 4 ^ handle) % kLaneCache];
    const std::uint64_t generation = g_lane_generation.load(std::memory_order_acquire);
    if (cached.handle == handle && cached.generation == generation && cached.client_tag == t_thread.client_tag &&
        cached.context_serial == t_thread.context_serial) {
        return cached.lane;
    }
    StreamEntry* found = entry(stream, per_thread);
    if (found == nullptr) return nullptr;
    Lane* lane = nullptr;
    if (found->context->managed) {
        Client* tagged = t_thread.client_tag > 0 ? session_.client(t_thread.client_tag - 1) : nullptr;
        Client* client = nullptr;
        {
            const std::lock_guard<std::mutex> guard(mutex_);
            client = found->bound;
            if (client == nullptr && tagged != nullptr && !tagged->ended.load()) {
                client = tagged;
                // Threads without a tag that use the stream (autograd's) work for the same client. The two default
                // streams are everybody's.
                const bool shared = reinterpret_cast<std::uintptr_t>(found->handle) == kLegacy;
                if (!shared && found->owner != tagged) {
                    found->owner = tagged;
                    g_lane_generation.fetch_add(1, std::memory_order_release);
                }
            }
            if (client == nullptr) client = found->owner;
            if (client == nullptr || client->ended.load()) client = session_.main_client;
        }
        lane = lane_of(*found, client);
    }
    cached = {handle, generation, t_thread.context_serial, t_thread.client_tag, lane};
    return lane;
}

Lane* Streams::existing_lane(CUstream stream, bool per_thread) {
    const std::uintptr_t handle = plain_handle(stream, per_thread);
    const LaneCache& cached = t_thread.lanes[(handle >> 4 ^ handle) % kLaneCache];
    const bool fresh = cached.handle == handle && cached.client_tag == t_thread.client_tag &&
                       cached.context_serial == t_thread.context_serial &&
                       cached.generation == g_lane_generation.load(std::memory_order_acquire);
    if (fresh) return cached.lane;
    const Key key = key_of(stream, per_thread);
    {
        const std::lock_guard<std::mutex> guard(mutex_);
        const auto found = entries_.find(key);
        if (found == entries_.end() || found->second->lanes.empty()) return nullptr;
    }
    return lane(stream, per_thread);
}

void Streams::created(CUstream stream) {
    StreamEntry* made = entry(stream, false);
    if (made == nullptr) return;
    Client* client = t_thread.client_tag > 0 ? session_.client_of_thread() : nullptr;
    const std::lock_guard<std::mutex> guard(mutex_);
    made->owner = client;
}

void Streams::bind(CUstream stream, Client* client) {
    StreamEntry* found = entry(stream, false);
    if (found == nullptr) return;
    const std::lock_guard<std::mutex> guard(mutex_);
    found->bound = client;
    g_lane_generation.fetch_add(1, std::memory_order_release);
}

std::vector<Lane*> Streams::closing(CUstream stream) {
    std::vector<Lane*> lanes;
    StreamEntry* found = nullptr;
    {
        const std::lock_guard<std::mutex> guard(mutex_);
        const auto entry = entries_.find({reinterpret_cast<std::uintptr_t>(stream), 0});
        if (entry == entries_.end()) return {};
        found = entry->second;
        entries_.erase(entry);
        found->closed.store(true, std::memory_order_seq_cst);
        lanes = found->lanes;
        g_lane_generation.fetch_add(1, std::memory_order_release);
    }
    while (found->fencing.load(std::memory_order_seq_cst)) sched_yield();
    return lanes;
}

void Streams::drop_context(CUcontext handle) {
    drop_contexts([&](const Context& context) { return context.handle == handle; });
}

void Streams::drop_device(CUdevice device) {
    drop_contexts([&](const Context& context) { return context.device == device; });
}

template <class Which>
void Streams::drop_contexts(const Which& which) {
    const std::lock_guard<std::mutex> guard(mutex_);
    for (auto found = contexts_.begin(); found != contexts_.end();) {
        Context* context = found->second;
        if (!which(*context)) {
            ++found;
            continue;
        }
        found = contexts_.erase(found);
        context->dead.store(true, std::memory_order_seq_cst);
        for (auto entry = entries_.begin(); entry != entries_.end();) {
            StreamEntry& stream = *entry->second;
            if (stream.context != context) {
                ++entry;
                continue;
            }
            stream.closed.store(true, std::memory_order_seq_cst);
            session_.captures.over(stream);
            for (Lane* lane : stream.lanes) lane->retired.store(true, std::memory_order_release);
            entry = entries_.erase(entry);
        }
    }
    g_lane_generation.fetch_add(1, std::memory_order_release);
}

void Streams::drop_client(Client* client) {
    const std::lock_guard<std::mutex> guard(mutex_);
    for (auto& [key, entry] : entries_) {
        if (entry->bound == client) entry->bound = nullptr;
        if (entry->owner == client) entry->owner = nullptr;
        std::vector<Lane*>& lanes = entry->lanes;
        lanes.erase(std::remove_if(lanes.begin(), lanes.end(), [&](Lane* lane) { return lane->client == client; }),
                    lanes.end());
    }
    for (Lane* lane : lanes_) {
        if (lane->client != client) continue;
        lane->slot.store(-1);  // the region frees it with the client
        lane->retired.store(true, std::memory_order_release);
    }
    g_lane_generation.fetch_add(1, std::memory_order_release);
}

void Streams::thread_ends(std::uint64_t number) {
    std::vector<Lane*> ended;
    {
        const std::lock_guard<std::mutex> guard(mutex_);
        for (auto entry = entries_.begin(); entry != entries_.end();) {
            StreamEntry& stream = *entry->second;
            if (!stream.default_per_thread || stream.thread != number) {
                ++entry;
                continue;
            }
            ended.insert(ended.end(), stream.lanes.begin(), stream.lanes.end());
            entry = entries_.erase(entry);
        }
    }
    for (Lane* lane : ended) {
        // The last thread that can record into it does so now.
        const std::uint64_t covered = lane->covered.load(std::memory_order_acquire);
        if (covered > std::max(lane->watched.load(), lane->done.load())) session_.completion.watch(*lane, true);
        lane->stream->closed.store(true, std::memory_order_seq_cst);
        lane->retired.store(true, std::memory_order_release);
    }
}

void Streams::retire(Lane* lane) {
    const std::lock_guard<std::mutex> guard(mutex_);
    lanes_.erase(std::remove(lanes_.begin(), lanes_.end(), lane), lanes_.end());
    serial_.fetch_add(1, std::memory_order_release);
}

std::vector<Lane*> Streams::lanes() {
    const std::lock_guard<std::mutex> guard(mutex_);
    return lanes_;
}

}  // namespace tierline::interpose
