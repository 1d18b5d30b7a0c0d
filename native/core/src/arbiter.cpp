#include "tierline/arbiter.hpp"

#include "running_set.hpp"

#include <linux/futex.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <limits>

namespace tierline {

namespace {

constexpr Nanoseconds kLongestLock = kSecond;  // who holds the lock that long was stopped inside it
constexpr Nanoseconds kLongestSleep = 50 * kMillisecond;  // a waiting thread looks for dead clients that often
constexpr int kMostAtOnce = kMaxWaiters;

void futex_wait(std::atomic<std::uint32_t>& word, std::uint32_t seen, Nanoseconds timeout_ns) {
    const timespec timeout{timeout_ns / kSecond, timeout_ns % kSecond};
    syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&word), FUTEX_WAIT, seen, &timeout, nullptr, 0);
}

void futex_wake_all(std::atomic<std::uint32_t>& word) {
    syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&word), FUTEX_WAKE, std::numeric_limits<int>::max(), nullptr,
            nullptr, 0);
}

// Start time of a process in clock ticks since boot (field 22 of its stat), 0 when there is no such process.
std::uint64_t start_of_process(int pid) {
    char path[40];
    std::snprintf(path, sizeof path, "/proc/%d/stat", pid);
    std::FILE* file = std::fopen(path, "re");
    if (file == nullptr) return 0;
    char line[1024];
    const std::size_t length = std::fread(line, 1, sizeof line - 1, file);
    std::fclose(file);
    line[length] = '\0';
    const char* field = std::strrchr(line, ')');  // the name may hold anything
    if (field == nullptr) return 0;
    const char state = field[1] == ' ' ? field[2] : '\0';
    if (state == 'Z' || state == 'X') return 0;
    for (int skipped = 0; skipped < 20 && field != nullptr; ++skipped) field = std::strchr(field + 1, ' ');
    if (field == nullptr) return 0;
    unsigned long long start = 0;
    return std::sscanf(field, "%llu", &start) == 1 ? start : 0;
}

bool is_gone(const Client& client) {
    if (client.pid == 0) return false;
    if (kill(client.pid, 0) != 0 && errno == ESRCH) return true;
    return client.pid_start != 0 && start_of_process(client.pid) != client.pid_start;
}

int waiting_before(const Region& region, int slot) {
    int count = 0;
    for (int index = 0; index < slot; ++index) count += region.waiters[index].state == 1 ? 1 : 0;
    return count;
}

// A launch of which the region does not know.
Ticket passed() {
    Ticket ticket;
    ticket.reason = Reason::overflowed;
    return ticket;
}

}  // namespace

Nanoseconds monotonic_ns() {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * kSecond + now.tv_nsec;
}

// Holds the region's mutex. A process that died inside left sums half done: they are made anew from the queues. One that was
// stopped inside must not stop the others: they go on without the region until it is let go.
class Arbiter::Lock {
public:
    explicit Lock(Arbiter& arbiter) : region_(*arbiter.mapped_) {
        int result = pthread_mutex_trylock(&region_.mutex);
        if (result == EBUSY && !arbiter.stuck_.load(std::memory_order_relaxed)) {
            timespec until{};
            clock_gettime(CLOCK_REALTIME, &until);
            until.tv_sec += kLongestLock / kSecond;
            result = pthread_mutex_timedlock(&region_.mutex, &until);
        }
        if (result == EOWNERDEAD) {
            repair(region_);
            pthread_mutex_consistent(&region_.mutex);
            result = 0;
        }
        held_ = result == 0;
        if (arbiter.stuck_.load(std::memory_order_relaxed) == held_) {
            arbiter.stuck_.store(!held_, std::memory_order_relaxed);
        }
    }
    ~Lock() {
        if (held_) pthread_mutex_unlock(&region_.mutex);
    }
    Lock(const Lock&) = delete;
    Lock& operator=(const Lock&) = delete;
    explicit operator bool() const { return held_; }

private:
    Region& region_;
    bool held_;
};

int Arbiter::join(std::string_view label, Priority priority, std::int64_t memory_cap_bytes) {
    const int pid = static_cast<int>(getpid());
    const std::uint64_t start = start_of_process(pid);
    const Lock lock(*this);
    if (!lock) return -1;
    const int slot = admission_.join(label, priority, memory_cap_bytes, pid, monotonic_ns());
    if (slot >= 0) mapped_->clients[slot].pid_start = start;
    return slot;
}

void Arbiter::leave_former_selves() {
    const int pid = static_cast<int>(getpid());
    const std::uint64_t start = start_of_process(pid);
    const Lock lock(*this);
    if (!lock) return;
    const Nanoseconds now_ns = monotonic_ns();
    for (int slot = 0; slot < kMaxClients; ++slot) {
        const Client& client = mapped_->clients[slot];
        if (client.state != 1 || client.pid != pid || client.pid_start != start) continue;
        admission_.leave(slot, now_ns);
        ++mapped_->reaped;
    }
    settle(now_ns);
}

void Arbiter::leave(int client) {
    const Lock lock(*this);
    if (!lock) return;
    const Nanoseconds now_ns = monotonic_ns();
    admission_.leave(client, now_ns);
    settle(now_ns);
}

int Arbiter::open_stream(int client, std::uint64_t id) {
    const Lock lock(*this);
    if (!lock) return -1;
    return admission_.open_stream(client, id);
}

void Arbiter::close_stream(int stream) {
    const Lock lock(*this);
    if (!lock) return;
    const Nanoseconds now_ns = monotonic_ns();
    admission_.close_stream(stream, now_ns);
    settle(now_ns);
}

int Arbiter::find_kernel(std::uint64_t key) { return admission_.find_kernel(key); }

int Arbiter::add_kernel(std::uint64_t key, const KernelFacts& facts) {
    const Lock lock(*this);
    if (!lock) return -1;
    return admission_.add_kernel(key, facts);
}

void Arbiter::set_profile(int kernel, const Demand& demand, Source source) {
    const Lock lock(*this);
    if (!lock) return;
    admission_.set_profile(kernel, demand, source);
}

Arbiter::Knowledge Arbiter::knowledge_of(int kernel) {
    const Lock lock(*this);
    if (!lock) return {{kWhole, kWhole, mapped_->config.device.sms, 0}, Source::none};
    return {mapped_->kernels[kernel].demand, mapped_->kernels[kernel].source};
}

// Looks at all heads and wakes whom it admits, but for the waiter whose thread is `awake`. Called with the lock held.
void Arbiter::settle(Nanoseconds now_ns, int awake) {
    if (mapped_->waiting == 0) return;
    int admitted[kMostAtOnce];
    const int count = admission_.decide(now_ns, admitted, kMostAtOnce);
    for (int index = 0; index < count; ++index) {
        if (admitted[index] == awake) continue;
        Waiter& waiter = mapped_->waiters[admitted[index]];
        waiter.word.fetch_add(1, std::memory_order_acq_rel);
        futex_wake_all(waiter.word);
    }
}

Ticket Arbiter::admit(const Request& request) {
    Region& region = *mapped_;
    int slot = -1;
    std::uint64_t serial = 0;
    Nanoseconds since_ns = 0;
    {
        const Lock lock(*this);
        if (!lock) return passed();
        since_ns = monotonic_ns();
        const Ticket ticket = admission_.request(request, since_ns);
        if (ticket.admitted()) return ticket;
        slot = ticket.waiter;
        serial = region.waiters[slot].serial;
        settle(since_ns, slot);
        if (region.waiters[slot].state != 1) return admission_.take(slot, since_ns);
    }
    call_attention();  // now fences are wanted
    const Nanoseconds give_up_ns = since_ns + region.config.max_wait_ns + kLongestSleep;
    Waiter& waiter = region.waiters[slot];
    while (true) {
        std::uint32_t seen = 0;
        const Nanoseconds now_ns = monotonic_ns();
        Nanoseconds sleep_ns = std::min(kLongestSleep, std::max<Nanoseconds>(give_up_ns - now_ns, 1));
        {
            const Lock lock(*this);
            if (lock) {
                // Its client left, or somebody recovered the region and no longer knows of this launch: it goes.
                if (waiter.state == 0 || waiter.serial != serial) return passed();
                if (waiter.state != 1 || now_ns >= give_up_ns) return admission_.take(slot, now_ns);
                if (admission_.deadline_ns() <= now_ns) {
                    settle(now_ns);
                    if (waiter.state != 1) return admission_.take(slot, now_ns);
                }
                const Nanoseconds left_ns = std::min(kLongestSleep, admission_.deadline_ns() - now_ns);
                // One that looks in time is enough. Who has others before it looks less often, in case they were stopped.
                if (left_ns > 0) sleep_ns = std::min(sleep_ns, left_ns * (1 + waiting_before(region, slot)));
            } else if (now_ns >= give_up_ns) {
                return passed();
            }
            seen = waiter.word.load(std::memory_order_acquire);
        }
        futex_wait(waiter.word, seen, std::max<Nanoseconds>(sleep_ns, kMicrosecond));
        if (monotonic_ns() - now_ns >= kLongestSleep) reap();
    }
}

void Arbiter::cancel(const Ticket& ticket) {
    if (ticket.seq == 0) return;
    // What was launched before it in the stream may still run: only when it is the newest of a stream with nothing
    // else in flight can its end be told now; otherwise the next event behind it tells.
    const Lock lock(*this);
    if (!lock) return;
    Stream& stream = mapped_->streams[ticket.stream];
    if (stream.count == 1 && stream.launched == ticket.seq) {
        const Nanoseconds now_ns = monotonic_ns();
        if (admission_.completed(ticket.stream, ticket.seq, now_ns)) settle(now_ns);
    } else if (stream.client >= 0) {
        ++stream.untracked;
    }
}

void Arbiter::completed(int stream, std::uint64_t seq) {
    const Lock lock(*this);
    if (!lock) return;
    const Nanoseconds now_ns = monotonic_ns();
    if (admission_.completed(stream, seq, now_ns)) settle(now_ns);
}

void Arbiter::learned(int kernel, Nanoseconds duration_ns) {
    const Lock lock(*this);
    if (!lock) return;
    admission_.learned(kernel, duration_ns);
    settle(monotonic_ns());
}

void Arbiter::iteration_ended(int client) {
    const Lock lock(*this);
    if (!lock) return;
    const Nanoseconds now_ns = monotonic_ns();
    if (admission_.iteration_ended(client, now_ns)) settle(now_ns);
}

bool Arbiter::reserve_memory(int client, std::int64_t bytes) {
    const Lock lock(*this);
    if (!lock) return true;
    return admission_.reserve_memory(client, bytes);
}

void Arbiter::release_memory(int client, std::int64_t bytes) {
    const Lock lock(*this);
    if (!lock) return;
    admission_.release_memory(client, bytes);
}

void Arbiter::call_attention() {
    mapped_->attention.fetch_add(1, std::memory_order_acq_rel);
    futex_wake_all(mapped_->attention);
}

std::uint32_t Arbiter::await_attention(std::uint32_t seen, Nanoseconds timeout_ns) {
    const std::uint32_t now = attention();
    if (now != seen) return now;
    futex_wait(mapped_->attention, seen, timeout_ns);
    return attention();
}

std::uint64_t Arbiter::wants_fence(int slot) {
    const Lock lock(*this);
    if (!lock) return 0;
    Stream& stream = mapped_->streams[slot];
    if (stream.count == 0 || stream.untracked == 0) return 0;
    stream.untracked = 0;
    return stream.launched;
}

void Arbiter::reap() {
    Region& region = *mapped_;
    const Lock lock(*this);
    if (!lock) return;
    bool any = false;
    const Nanoseconds now_ns = monotonic_ns();
    for (int slot = 0; slot < kMaxClients; ++slot) {
        if (region.clients[slot].state != 1 || !is_gone(region.clients[slot])) continue;
        admission_.leave(slot, now_ns);
        ++region.reaped;
        any = true;
    }
    if (any) settle(now_ns);
}

}  // namespace tierline
