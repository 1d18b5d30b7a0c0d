#include "driver.hpp"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

namespace tierline::fakecuda {
namespace {

std::atomic<bool> g_forked{false};
std::atomic<int> g_at_the_door{0};  // threads that wait for the driver's lock

void in_child() {
    if (driver().initialised) g_forked.store(true);
}

std::int64_t real_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

// A thread's entry in the driver's list, for as long as the thread lives. Made with the driver's lock held.
struct ThreadEntry {
    ThreadEntry() { driver().threads.push_back(&state); }
    ~ThreadEntry() {
        if (after_fork()) return;  // the lock may have been somebody's who is not in this process
        const std::lock_guard<std::mutex> lock(driver().mutex);
        auto& all = driver().threads;
        all.erase(std::remove(all.begin(), all.end(), &state), all.end());
    }
    ThreadState state;
};

// Some other thread wants in, or has launched a moment ago and does not wait: it will launch before it lets time pass.
bool others_are_launching() {
    constexpr std::int64_t kMoment = 500'000;
    if (g_at_the_door.load(std::memory_order_relaxed) > 0) return true;
    const ThreadState& self = this_thread();
    const std::int64_t now = driver().threads.size() > 1 ? real_ns() : 0;
    for (const ThreadState* other : driver().threads) {
        if (other != &self && !other->waiting && now - other->last_launch_ns < kMoment) return true;
    }
    return false;
}

// Written beside the file and renamed, so that a reader finds a whole one.
void write_truth(const std::string& path, const std::string& text) {
    const std::string partial = path + "." + std::to_string(::getpid());
    std::FILE* file = std::fopen(partial.c_str(), "w");
    if (file == nullptr) return;
    const bool whole = std::fwrite(text.data(), 1, text.size(), file) == text.size();
    if (std::fclose(file) == 0 && whole) {
        std::rename(partial.c_str(), path.c_str());
    } else {
        std::remove(partial.c_str());
    }
}

__attribute__((destructor)) void at_exit() {
    if (after_fork()) return;
    Driver& d = driver();
    {
        std::unique_lock<std::mutex> lock(d.mutex);
        if (d.ended) return;
        d.ended = true;
        d.changed.notify_all();
        if (!d.initialised) return;
        d.host.lock();
        d.host.now();
        log_summary(d.host.device().now_ns());
        if (!config().truth.empty()) write_truth(config().truth, d.host.truth_json());
        d.host.close();
        d.host.unlock();
    }
}

}  // namespace

Driver& driver() {
    // Never destroyed: calls may come from other libraries' exit handlers.
    static Driver* const once = new Driver;
    return *once;
}

bool after_fork() { return g_forked.load(std::memory_order_relaxed); }

std::uint64_t thread_number() {
    static std::atomic<std::uint64_t> next{1};
    static thread_local const std::uint64_t number = next.fetch_add(1);
    return number;
}

std::vector<Context*>& context_stack() {
    static thread_local std::vector<Context*> stack;
    return stack;
}

Context* current_context() { return context_stack().empty() ? nullptr : context_stack().back(); }

CUstreamCaptureMode& thread_capture_mode() {
    static thread_local CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
    return mode;
}

std::uint32_t& thread_client() {
    static thread_local std::uint32_t client = 0;
    return client;
}

ThreadState& this_thread() {
    static thread_local ThreadEntry entry;
    return entry.state;
}

void note_launch() {
    ThreadState& self = this_thread();
    if (driver().threads.size() > 1) self.last_launch_ns = real_ns();
}

Session::Session() : lock_(driver().mutex, std::defer_lock) { acquire(); }

Session::~Session() { release(); }

void Session::acquire() {
    if (!lock_.try_lock()) {
        g_at_the_door.fetch_add(1, std::memory_order_relaxed);
        lock_.lock();
        g_at_the_door.fetch_sub(1, std::memory_order_relaxed);
    }
    join_device();
}

void Session::join_device() {
    if (device_ || !driver().initialised || driver().ended) return;
    driver().host.lock();
    device_ = true;
    driver().host.now();
}

void Session::release() {
    if (device_) driver().host.unlock();
    device_ = false;
    if (lock_.owns_lock()) lock_.unlock();
}

void Session::pause(std::int64_t ns) {
    if (device_) driver().host.unlock();
    device_ = false;
    // The system clock, for ThreadSanitizer of this compiler does not know the steady clock's wait.
    driver().changed.wait_until(lock_, std::chrono::system_clock::now() + std::chrono::nanoseconds(ns));
    join_device();
}

void run_host_calls(Session& session) {
    if (driver().host_calls.empty()) return;
    DeviceHost::HostCall due{};
    while (driver().host.take_host_call(due)) {
        Driver& d = driver();
        const auto found = d.host_calls.find(static_cast<std::uint32_t>(due.cookie));
        // Told a second time after another process died: it was run already.
        if (found == d.host_calls.end()) continue;
        const PendingHostCall pending = found->second;
        d.host_calls.erase(found);
        session.without([&] { pending.function(pending.user_data); });
        d.host.host_done(due.stream);
        d.changed.notify_all();
    }
}

void wait_step(Session& session) {
    constexpr std::int64_t kLongest = 1'000'000;  // so that other processes' changes are seen
    Driver& d = driver();
    if (d.ended) return;
    d.host.reap();
    if (!config().wall_clock) {
        run_host_calls(session);
        // Several threads that launch share the clock: it stands still while one of them is between two launches. A
        // bound of real time keeps a thread that has gone elsewhere from stopping it. One thread alone never waits
        // here.
        if (others_are_launching()) {
            session.pause(20'000);
            return;
        }
        if (!d.host.step()) session.pause(kLongest);  // only another thread or process can go on
        return;
    }
    const std::int64_t left = d.host.real_until_next();
    session.pause(left < 0 ? kLongest : std::min(left, kLongest));
}

// With the wall clock, host functions run on a thread of the driver, as real ones do. (In virtual time they run on
// whichever thread moves the time on, so that runs repeat.)
void need_host_thread() {
    Driver& d = driver();
    if (!config().wall_clock || d.host_thread) return;
    d.host_thread = true;
    std::thread([] {
        Session session;
        Driver& inner = driver();
        while (!inner.ended) {
            run_host_calls(session);
            if (inner.host_calls.empty()) {
                session.pause(100'000'000);
            } else {
                wait_step(session);
            }
        }
    }).detach();
}

CUresult open_driver() {
    Driver& d = driver();
    if (d.ended) return CUDA_ERROR_DEINITIALIZED;
    if (d.initialised) return CUDA_SUCCESS;
    std::string complaint = config().complaint;
    if (complaint.empty()) complaint = d.host.open(config());
    if (!complaint.empty()) {
        std::fprintf(stderr, "fake libcuda: %s\n", complaint.c_str());
        return CUDA_ERROR_OPERATING_SYSTEM;
    }
    static const bool once = [] { return ::pthread_atfork(nullptr, nullptr, in_child) == 0; }();
    static_cast<void>(once);
    d.default_pool = new Pool;
    d.current_pool = d.default_pool;
    d.initialised = true;
    return CUDA_SUCCESS;
}

CUresult ready(Need need) {
    Driver& d = driver();
    if (need == Need::nothing) return CUDA_SUCCESS;
    if (d.ended) return CUDA_ERROR_DEINITIALIZED;
    if (!d.initialised) return CUDA_ERROR_NOT_INITIALIZED;
    if (need == Need::context && current_context() == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
    return CUDA_SUCCESS;
}

CUresult to_result(Status status) {
    switch (status) {
        case Status::ok: return CUDA_SUCCESS;
        case Status::streams_full:
        case Status::operations_full:
        case Status::kernels_full:
        case Status::events_full:
        case Status::contexts_full: return CUDA_ERROR_OUT_OF_MEMORY;
        case Status::bad_stream:
        case Status::bad_event:
        case Status::bad_kernel: return CUDA_ERROR_INVALID_HANDLE;
        case Status::bad_context: return CUDA_ERROR_INVALID_CONTEXT;
        case Status::bad_argument: return CUDA_ERROR_INVALID_VALUE;
        case Status::too_large: return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
    }
    return CUDA_ERROR_UNKNOWN;
}

Stream* make_stream(Context& context, unsigned flags, int priority, bool legacy, bool per_thread, GreenContext* green,
                    Status& status) {
    Driver& d = driver();
    StreamOptions options;
    options.priority = priority;
    options.legacy = legacy;
    options.blocking = !legacy && (flags & CU_STREAM_NON_BLOCKING) == 0;
    // Clients of one process that named themselves are told apart in the truth; the process's number keeps them from
    // those of other processes.
    options.client = thread_client() != 0 ? d.host.client() << 16 | thread_client() : d.host.client();
    if (green != nullptr) {
        options.first_sm = green->first_sm;
        options.sm_count = green->sm_count;
    }
    auto stream = std::make_unique<Stream>();
    status = d.host.create_stream(context.engine, options, stream->engine);
    if (status != Status::ok) return nullptr;
    stream->context = &context;
    stream->id = d.next_id++;
    stream->flags = flags;
    stream->priority = priority;
    stream->legacy = legacy;
    stream->per_thread = per_thread;
    stream->green = green;
    context.streams.push_back(stream.get());
    return stream.release();
}

Stream* find_stream(CUstream handle) {
    if (handle != nullptr && handle != legacy_stream() && handle != per_thread_stream()) {
        return to<Stream>(handle, Tag::stream);
    }
    Context* context = current_context();
    if (context == nullptr) return nullptr;
    Status status = Status::ok;
    if (handle == per_thread_stream()) {
        Stream*& own = context->per_thread[thread_number()];
        if (own == nullptr) own = make_stream(*context, CU_STREAM_DEFAULT, 0, false, true, context->green, status);
        return own;
    }
    if (context->legacy == nullptr) {
        context->legacy = make_stream(*context, CU_STREAM_DEFAULT, 0, true, false, context->green, status);
    }
    return context->legacy;
}

std::string stream_text(const Stream& stream) {
    if (stream.legacy) return "legacy";
    return (stream.per_thread ? "thread:" : "stream:") + std::to_string(stream.id);
}

}  // namespace tierline::fakecuda

// For tests and for programs that know that the device is simulated; found by dlsym.
#pragma GCC visibility push(default)
extern "C" {
unsigned long long fakecuda_calls(const char* name) { return tierline::fakecuda::calls_of(name); }

// Device time.
long long fakecuda_now() {
    using namespace tierline::fakecuda;
    if (after_fork()) return 0;
    Session session;
    return driver().initialised ? driver().host.now() : 0;
}

// The host computes for so long: virtual time passes; with the wall clock the caller sleeps.
void fakecuda_host(long long ns) {
    using namespace tierline::fakecuda;
    if (after_fork() || ns <= 0) return;
    if (config().wall_clock) {
        std::this_thread::sleep_for(
            std::chrono::nanoseconds(static_cast<std::int64_t>(static_cast<double>(ns) / config().scale)));
        return;
    }
    Session session;
    if (driver().initialised) driver().host.pass(ns);
}

// Streams that this thread makes from now on belong to client `client` of this process (1 to 65535) in the truth.
void fakecuda_client(unsigned client) { tierline::fakecuda::thread_client() = client & 0xffff; }

// Releases spinning kernels that wait for `token`.
void fakecuda_post(unsigned token) {
    using namespace tierline::fakecuda;
    if (after_fork()) return;
    Session session;
    if (driver().initialised) driver().host.post(token);
    driver().changed.notify_all();
}
}
#pragma GCC visibility pop
