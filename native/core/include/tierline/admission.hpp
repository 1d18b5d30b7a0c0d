// The state machine of the kernel tier, without I/O, clock or lock: the only place where a region's state changes and
// where the limits hold. The interposer drives it under a lock (arbiter.hpp), the simulation in virtual time.
#pragma once

#include "tierline/region.hpp"

#include <memory>
#include <string_view>

namespace tierline {

// What a kernel looks like at first sight. `flops` and `bytes` come from a tagged shape (0 = unknown).
struct KernelFacts {
    std::string_view name;
    std::array<std::uint32_t, 3> grid{1, 1, 1};
    std::array<std::uint32_t, 3> block{1, 1, 1};
    std::uint32_t registers = 0;
    std::uint32_t smem_static_bytes = 0;
    std::uint32_t smem_dynamic_bytes = 0;
    std::uint32_t occupancy = 1;
    double flops = 0.0;
    double bytes = 0.0;
};

// Key of (name, grid, block, dynamic shared memory, tagged shape); never 0.
std::uint64_t kernel_key(std::string_view name, const std::array<std::uint32_t, 3>& grid,
                         const std::array<std::uint32_t, 3>& block, std::uint32_t smem_dynamic_bytes,
                         std::uint64_t shape = 0);

// A launch that came to the gate.
struct Request {
    int client = -1;
    int stream = -1;   // slot from `open_stream`
    int kernel = -1;   // row from `find_kernel`/`add_kernel`; -1: unknown and no room to learn it
    bool exempt = false;
};

// The answer. `waiter` >= 0: the launch waits there, and a later `decide` admits it.
struct Ticket {
    Reason reason = Reason::none;
    int waiter = -1;
    int stream = -1;
    std::uint64_t seq = 0;
    bool track = false;  // record an event behind this launch
    bool learn = false;  // time it alone: events before and behind
    bool admitted() const { return waiter < 0; }
};

class Admission {
public:
    explicit Admission(Region& region);
    ~Admission();
    Admission(const Admission&) = delete;
    Admission& operator=(const Admission&) = delete;

    // --- clients, streams, kernels ---------------------------------------------------------------
    // Slot of the new client, or -1 when 64 are joined. `memory_cap_bytes` 0 = none. `pid` 0: never reaped.
    int join(std::string_view label, Priority priority, std::int64_t memory_cap_bytes, int pid, Nanoseconds now_ns);
    // Ends all it had in flight and all it waited for. Admits others: call `decide` next.
    void leave(int client, Nanoseconds now_ns);
    // Slot of the client's stream `id`, made when new; -1 when all 256 are in use (the launch passes through).
    int open_stream(int client, std::uint64_t id);
    // The stream is destroyed once its launches have ended.
    void close_stream(int stream, Nanoseconds now_ns);
    // Row of the key, or -1.
    int find_kernel(std::uint64_t key) const;
    // Row of the key, made from the facts when new; -1 when the table is full.
    int add_kernel(std::uint64_t key, const KernelFacts& facts);
    // Sets what is known of a kernel (a profile file, a test). It is known from now on.
    void set_profile(int kernel, const Demand& demand, Source source);
    bool is_known(int kernel) const;

    // --- launches -----------------------------------------------------------------------------------
    // A launch comes. Answers at once, or leaves it among the waiters; never blocks.
    Ticket request(const Request& request, Nanoseconds now_ns);
    // All launches of the stream up to `seq` have ended by `now_ns`. Call `decide` next when true: demand was released.
    bool completed(int stream, std::uint64_t seq, Nanoseconds now_ns);
    // A learning launch took so long, alone on the device.
    void learned(int kernel, Nanoseconds duration_ns);
    // Looks at all waiting heads together, admits what may go; writes their waiter slots, returns how many.
    int decide(Nanoseconds now_ns, int* admitted, int capacity);
    // When `decide` has to be called at the latest even if nothing happens; INT64_MAX = never.
    Nanoseconds deadline_ns() const;
    // The caller took notice of an admitted waiter (or gave up: then the launch counts as forced). Frees the slot.
    Ticket take(int waiter, Nanoseconds now_ns);
    // The client synchronised: its iteration ends here. Call `decide` next when true: best effort may have waited for it.
    bool iteration_ended(int client, Nanoseconds now_ns);

    // --- memory ---------------------------------------------------------------------------------------
    // False when the allocation would exceed the client's cap; counts otherwise.
    bool reserve_memory(int client, std::int64_t bytes);
    void release_memory(int client, std::int64_t bytes);

    Region& region() { return region_; }
    const Region& region() const { return region_; }

private:
    struct Scene;
    void look(Nanoseconds now_ns);

    Region& region_;
    std::unique_ptr<Scene> scene_;
};

const char* name_of(PolicyName policy);
const char* name_of(Reason reason);
const char* name_of(Source source);
// -1 when there is no policy of this name.
int policy_from(std::string_view name);

}  // namespace tierline
