#include "completion.hpp"

#include "driver.hpp"
#include "log.hpp"
#include "session.hpp"
#include "thread.hpp"

#include <signal.h>
#include <sys/prctl.h>
#include <time.h>

#include <algorithm>
#include <exception>

namespace tierline::interpose {

namespace {

constexpr Nanoseconds kIdle = 20 * kMillisecond;      // nobody waits, nothing is watched
constexpr Nanoseconds kUncontended = kMillisecond;    // events are out, but no other client has work
constexpr Nanoseconds kReap = 100 * kMillisecond;

void nap(Nanoseconds duration_ns) {
    const timespec duration{duration_ns / kSecond, duration_ns % kSecond};
    nanosleep(&duration, nullptr);
}

bool is_over(CUresult result) {
    // A context that is gone or broken will never tell: what ran in it counts as ended.
    return result != CUDA_ERROR_NOT_READY;
}

}  // namespace

bool Completion::watch(Lane& lane, bool per_thread) {
    const std::uint64_t covered = lane.covered.load(std::memory_order_acquire);
    if (covered == 0) return false;
    CUevent event = lane.stream->context->take_event(false);
    if (event == nullptr) return false;
    const Driver& table = *driver();
    const CUresult result = per_thread && table.cuEventRecord_ptsz != nullptr
                                ? table.cuEventRecord_ptsz(event, lane.stream->handle)
                                : table.cuEventRecord(event, lane.stream->handle);
    if (result != CUDA_SUCCESS) {
        lane.stream->context->give_back(event, false);
        return false;
    }
    add({&lane, covered, event, nullptr, -1});
    return true;
}

void Completion::add(const Pending& pending) {
    std::uint64_t watched = pending.lane->watched.load(std::memory_order_relaxed);
    while (watched < pending.seq && !pending.lane->watched.compare_exchange_weak(watched, pending.seq)) {
    }
    const std::lock_guard<SpinLock> guard(lock_);
    added_.push_back(pending);
}

void Completion::ended(Lane& lane, std::uint64_t seq) {
    const int slot = lane.slot.load(std::memory_order_relaxed);
    if (slot < 0 || seq == 0) return;
    std::uint64_t done = lane.done.load(std::memory_order_relaxed);
    do {
        if (done >= seq) return;
    } while (!lane.done.compare_exchange_weak(done, seq));
    session_.arbiter.completed(slot, seq);
}

void Completion::start() {
    if (state_.load(std::memory_order_relaxed) != 0) return;
    int fresh = 0;
    if (!state_.compare_exchange_strong(fresh, 1)) return;
    // The program's signal handlers must not run on a thread that it does not know.
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    if (pthread_create(&thread_, &attributes, run, this) != 0) {
        static Once once;
        log_once(once, "the thread that looks for ended launches could not be started: waits end at their bound");
        state_.store(3);
    }
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void Completion::stop() {
    int running = 1;
    if (!state_.compare_exchange_strong(running, 2)) return;
    // Bounded: at exit a driver call of the poller may never return.
    timespec until{};
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 1;
    pthread_timedjoin_np(thread_, nullptr, &until);
}

void Completion::step_back() {
    const std::uint64_t round = rounds_.load(std::memory_order_seq_cst);
    if (round % 2 == 0) return;
    constexpr int kTries = 10000;  // a driver call of the poller takes microseconds
    for (int tries = 0; tries < kTries && rounds_.load(std::memory_order_seq_cst) == round; ++tries) sched_yield();
}

void Completion::catch_up() {
    if (state_.load(std::memory_order_acquire) != 1) return;
    constexpr int kTries = 200;
    constexpr Nanoseconds kPause = 100 * kMicrosecond;
    const std::uint64_t round = rounds_.load(std::memory_order_seq_cst);
    const std::uint64_t wanted = round + (round % 2 == 0 ? 2 : 3);  // a round that begins from now on is over
    for (int tries = 0; tries < kTries && rounds_.load(std::memory_order_seq_cst) < wanted; ++tries) {
        session_.arbiter.call_attention();
        nap(kPause);
    }
}

void* Completion::run(void* self) {
    const Inside inside;  // whatever this thread calls is no call of the program
    pthread_setname_np(pthread_self(), "tierline-poll");
    prctl(PR_SET_TIMERSLACK, 1000UL);
    try {
        static_cast<Completion*>(self)->loop();
    } catch (const std::exception& error) {
        static Once once;
        log_once(once, "the thread that looks for ended launches stopped (%s): waits end at their bound", error.what());
    }
    return nullptr;
}

bool Completion::enter(Context& context) {
    if (context.dead.load(std::memory_order_seq_cst)) return false;
    if (entered_ == &context) return true;
    if (driver()->cuCtxSetCurrent(context.handle) != CUDA_SUCCESS) return false;
    t_thread.context = context.handle;
    t_thread.context_known = true;
    // Only with a context: without one this call would make one.
    if (entered_ == nullptr && driver()->cuThreadExchangeStreamCaptureMode != nullptr) {
        CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
        driver()->cuThreadExchangeStreamCaptureMode(&mode);
    }
    entered_ = &context;
    return true;
}

void Completion::take_added() {
    std::vector<Pending> fresh;
    {
        const std::lock_guard<SpinLock> guard(lock_);
        fresh.swap(added_);
    }
    for (const Pending& pending : fresh) queues_[pending.lane].push_back(pending);
}

// Records an event behind what the lane has in its stream, if it can be done now.
void Completion::fence(Lane& lane) {
    StreamEntry& stream = *lane.stream;
    const std::uint64_t covered = lane.covered.load(std::memory_order_acquire);
    if (covered <= std::max(lane.watched.load(), lane.done.load())) return;  // what is owed is still being launched
    stream.fencing.store(true, std::memory_order_seq_cst);
    const bool usable = !stream.closed.load(std::memory_order_seq_cst) && enter(*stream.context) &&
                        !stream.capturing.load(std::memory_order_seq_cst) &&
                        stream.joining.load(std::memory_order_seq_cst) == 0 &&
                        !(session_.captures.any() && session_.captures.is_capturing(stream, stream.handle, false));
    if (usable) {
        CUevent event = stream.context->take_event(false);
        // The default stream of another thread cannot be named here; the legacy stream waits for all of them.
        CUstream target = stream.default_per_thread ? legacy_stream() : stream.handle;
        if (event != nullptr && driver()->cuEventRecord(event, target) == CUDA_SUCCESS) {
            add({&lane, covered, event, nullptr, -1});
        } else {
            stream.context->give_back(event, false);
        }
    }
    stream.fencing.store(false, std::memory_order_seq_cst);
}

// Its stream is gone and nothing of it is watched any more.
void Completion::retire(Lane& lane) {
    const int slot = lane.slot.exchange(-1);
    if (slot >= 0) session_.arbiter.close_stream(slot);
    session_.streams.retire(&lane);
    queues_.erase(&lane);
}

void Completion::finish(const Pending& pending, bool report) {
    Context& context = *pending.lane->stream->context;
    if (report && pending.start != nullptr && !context.dead.load(std::memory_order_acquire)) {
        float milliseconds = 0.0F;
        if (driver()->cuEventElapsedTime != nullptr &&
            driver()->cuEventElapsedTime(&milliseconds, pending.start, pending.event) == CUDA_SUCCESS) {
            const auto duration_ns = static_cast<Nanoseconds>(static_cast<double>(milliseconds) * 1e6);
            session_.arbiter.learned(pending.row, std::max<Nanoseconds>(1, duration_ns));
        }
    }
    context.give_back(pending.event, pending.start != nullptr);
    context.give_back(pending.start, true);
}

void Completion::poll(Lane& lane, std::deque<Pending>& queue) {
    Context& context = *lane.stream->context;
    const bool reachable = enter(context);
    std::uint64_t ended_seq = 0;
    while (!queue.empty()) {
        const Pending& front = queue.front();
        const bool learning = front.start != nullptr;
        // Something told already; only a time is still worth a question.
        const bool told = front.seq <= lane.done.load(std::memory_order_relaxed) && !learning;
        if (reachable && !told && !is_over(driver()->cuEventQuery(front.event))) break;
        // A dependent launch joined the last one: the event behind both tells.
        const bool joined = queue.size() > 1 && queue[1].seq == front.seq;
        finish(front, reachable);
        if (!joined) ended_seq = std::max(ended_seq, front.seq);
        queue.pop_front();
    }
    if (ended_seq != 0) ended(lane, ended_seq);
}

void Completion::loop() {
    Arbiter& arbiter = session_.arbiter;
    std::uint32_t seen = arbiter.attention();
    Nanoseconds reaped_ns = monotonic_ns();
    while (state_.load(std::memory_order_acquire) == 1) {
        rounds_.fetch_add(1, std::memory_order_seq_cst);
        take_added();
        if (session_.streams.serial() != lanes_serial_) {
            lanes_serial_ = session_.streams.serial();
            lanes_ = session_.streams.lanes();
        }
        const bool contended = arbiter.contended();
        bool pending = false;
        for (Lane* lane : lanes_) {
            const int slot = lane->slot.load(std::memory_order_relaxed);
            if (slot < 0) continue;
            if (contended && lane->covered.load() > std::max(lane->watched.load(), lane->done.load())) {
                lane->owe(arbiter.wants_fence(slot));
            }
            if (lane->owes() && !lane->retired.load(std::memory_order_relaxed)) {
                fence(*lane);
                pending = pending || lane->owes();
            }
        }
        take_added();
        for (auto& [lane, queue] : queues_) {
            if (queue.empty()) continue;
            poll(*lane, queue);
            pending = pending || !queue.empty();
        }
        for (Lane* lane : lanes_) {
            if (!lane->retired.load(std::memory_order_acquire)) continue;
            take_added();
            const auto queue = queues_.find(lane);
            if (queue == queues_.end() || queue->second.empty()) retire(*lane);
        }
        rounds_.fetch_add(1, std::memory_order_seq_cst);
        const Nanoseconds now_ns = monotonic_ns();
        if (now_ns - reaped_ns >= kReap) {
            reaped_ns = now_ns;
            arbiter.reap();
        }
        if (pending && contended) {
            nap(session_.settings.poll_ns);
        } else if (pending || contended) {
            seen = arbiter.await_attention(seen, contended ? 10 * session_.settings.poll_ns : kUncontended);
        } else {
            seen = arbiter.await_attention(seen, kIdle);
        }
    }
    // What a program on its way out has waited for tells its times still.
    take_added();
    for (auto& [lane, queue] : queues_) {
        if (!queue.empty()) poll(*lane, queue);
    }
}

}  // namespace tierline::interpose
