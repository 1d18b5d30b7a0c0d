// The state behind the API, the guard of every call, and waiting.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "calls.hpp"
#include "config.hpp"
#include "cuda.hpp"
#include "device_host.hpp"
#include "objects.hpp"

namespace tierline::fakecuda {

// What the virtual clock knows of a thread that launches. Read and written under the driver's lock.
struct ThreadState {
    bool waiting = false;             // within a call that waits for the device
    std::int64_t last_launch_ns = 0;  // real time
};

struct PendingHostCall {
    CUhostFn function = nullptr;
    void* user_data = nullptr;
    Event* event = nullptr;  // unused by plain host functions
};

// One for the process; its lock is held for the whole of a call but while that call waits.
struct Driver {
    std::mutex mutex;
    std::condition_variable changed;
    bool initialised = false;
    bool ended = false;  // the process is leaving
    DeviceHost host;

    Context* primary = nullptr;
    int primary_references = 0;
    unsigned primary_flags = 0;
    std::vector<Context*> contexts;
    std::uint64_t next_id = 1;

    std::vector<std::shared_ptr<Capture>> captures;
    std::map<std::uintptr_t, Allocation> allocations;
    std::map<std::uintptr_t, PhysicalMemory*> mappings;
    Pool* default_pool = nullptr;
    Pool* current_pool = nullptr;

    std::unordered_map<std::uint32_t, PendingHostCall> host_calls;  // by the lower half of the cookie
    std::uint32_t next_host_call = 1;
    bool host_thread = false;
    std::vector<ThreadState*> threads;
};

Driver& driver();
inline const DeviceSpec& spec() { return driver().host.device().spec(); }
std::uint64_t thread_number();
// Context stack of the calling thread; the last is current.
std::vector<Context*>& context_stack();
Context* current_context();
CUstreamCaptureMode& thread_capture_mode();
std::uint32_t& thread_client();

ThreadState& this_thread();
void note_launch();

// Both locks.
class Session {
public:
    Session();
    ~Session();
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;
    // Gives both locks up for at most `ns`, less when something changes in this process.
    void pause(std::int64_t ns);
    // Takes the device's lock too, once there is a device.
    void join_device();
    // Gives both locks up while `work` runs.
    template <class Work>
    void without(Work&& work) {
        release();
        work();
        acquire();
    }

private:
    void acquire();
    void release();
    std::unique_lock<std::mutex> lock_;
    bool device_ = false;
};

// Lets device time go on until `done()`; host functions whose turn comes are run meanwhile.
template <class Done>
void wait_until(Session& session, Done&& done);
void wait_step(Session& session);
void run_host_calls(Session& session);
void need_host_thread();

bool after_fork();

enum class Need { nothing, device, context };

CUresult ready(Need need);
CUresult to_result(Status status);
CUresult open_driver();

// Every exported function is `return call(Entry::name, Need::..., [&](Session& session) { ...; });`.
template <class Body>
CUresult call(Entry entry, Need need, Body&& body) {
    const int injected = count_call(entry);
    CUresult result = static_cast<CUresult>(injected);
    std::int64_t at_ns = 0;
    if (after_fork()) {
        result = CUDA_ERROR_NOT_INITIALIZED;
    } else {
        Session session;
        if (injected == 0) result = ready(need);
        if (result == CUDA_SUCCESS) result = body(session);
        if (driver().initialised) at_ns = driver().host.device().now_ns();
    }
    if (log_enabled()) log_call(entry, at_ns, result);
    return result;
}

template <class Done>
void wait_until(Session& session, Done&& done) {
    this_thread().waiting = true;
    while (!done()) wait_step(session);
    this_thread().waiting = false;
}

// Streams: null and 1 are the legacy default stream, 2 is the thread's own. `_ptsz` forms map null to 2 beforehand.
inline CUstream own_default(CUstream stream) { return stream == nullptr ? per_thread_stream() : stream; }
// The stream that a handle names, made if it is a default stream that is used for the first time; null for a bad
// handle.
Stream* find_stream(CUstream handle);
Stream* make_stream(Context& context, unsigned flags, int priority, bool legacy, bool per_thread, GreenContext* green,
                    Status& status);
std::string stream_text(const Stream& stream);

// Repeats `enqueue` while the device's queue is full, as a real launch blocks then.
template <class Enqueue>
CUresult enqueue(Session& session, Stream& stream, Enqueue&& what) {
    Enqueued done = what();
    while (done.status == Status::operations_full) {
        wait_step(session);
        done = what();
    }
    if (done.status == Status::ok) {
        stream.last_op = done.op;
        driver().changed.notify_all();
    }
    return to_result(done.status);
}

// capture.cpp. Each returns CUDA_SUCCESS, or the error of a call that capture forbids (and invalidates what it must).
CUresult unsafe_call();                   // a call that must not be made while captures forbid it to this thread
CUresult before_enqueue(Stream& stream);  // an operation is about to be put into the stream
CUresult no_capture(Stream& stream);      // a call on a stream (query, synchronise) that is wrong while it captures
void invalidate(Capture& capture);
Node* capture_node(Stream& stream, CUgraphNodeType type);

// launch.cpp
Function* function_of(CUfunction handle);
CUresult enqueue_launch(Session& session, Stream& stream, const Launch& launch);
CUresult kernel_number(const Launch& launch, KernelId& out);
CUresult check_launch(const Launch& launch);
CUresult read_arguments(Launch& launch, void** parameters, void** extra);
CUresult enqueue_host_call(Session& session, Stream& stream, CUhostFn function, void* user_data);
CUresult check_ticket();

// memory.cpp
CUresult allocate(std::size_t bytes, Pool* pool, CUdeviceptr& out);
CUresult release(CUdeviceptr pointer);
void move_bytes(void* destination, const void* source, std::size_t bytes);
Direction direction_of(const void* destination, const void* source);

// module.cpp
CUresult load_image(const void* image, Tag kind, Module*& out);

}  // namespace tierline::fakecuda
