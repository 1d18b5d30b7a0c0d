// All that one process holds under the interposer. Made at the first launch, stream or allocation, not before: programs
// that never use the device never have one. A forked child starts without.
#pragma once

#include "captures.hpp"
#include "completion.hpp"
#include "kernels.hpp"
#include "memory.hpp"
#include "settings.hpp"
#include "streams.hpp"
#include "tierline/arbiter.hpp"

#include <atomic>
#include <mutex>
#include <vector>

namespace tierline::interpose {

struct Session {
    Session(Settings given, MappedRegion region);

    // Joins another client. Null when the region has no room.
    Client* join(const char* label, Priority priority, std::int64_t memory_cap_bytes);
    void leave(Client* client);
    // The client has synchronised.
    void iteration_ended(const Client& client);
    // Client of a thread's tag or of `tierline_client_begin`'s number; null = no such.
    Client* client(int number);
    int number_of(const Client* client) const;
    // The client of what this thread does outside any stream.
    Client* client_of_thread();

    Settings settings;
    Arbiter arbiter;
    Client* main_client = nullptr;
    int device = -1;  // that it manages: the one of the first context it saw
    Streams streams{*this};
    Kernels kernels{*this};
    Captures captures{*this};
    Memory memory;
    Completion completion{*this};

private:
    mutable std::mutex mutex_;
    std::vector<Client*> clients_;
};

// This process's session, made when there is none yet. Null: no context is current yet (`without_context`: then the
// first device is taken), or it could not be made (told once); everything passes.
Session* session(bool without_context = false) noexcept;
// The session if there is one.
Session* session_if_any() noexcept;

extern std::atomic<int> g_switch;  // 0 not looked up, 1 on, 2 off
bool look_up_switch() noexcept;
// TIERLINE_KERNELS=off, or the process is on its way out.
inline bool switched_off() {
    const int state = g_switch.load(std::memory_order_relaxed);
    if (__builtin_expect(state == 1, 1)) return false;
    return state == 2 || look_up_switch();
}

// For the time of calls of our own that are no part of the program: they disturb no capture in another thread.
class RelaxedCapture {
public:
    RelaxedCapture();
    ~RelaxedCapture();
    RelaxedCapture(const RelaxedCapture&) = delete;
    RelaxedCapture& operator=(const RelaxedCapture&) = delete;

private:
    bool exchanged_ = false;
    CUstreamCaptureMode mode_ = CU_STREAM_CAPTURE_MODE_RELAXED;
};

}  // namespace tierline::interpose
