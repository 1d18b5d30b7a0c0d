// All state of one device's arbiter in one fixed-capacity block without pointers: it lives in private memory, or in a
// file that several processes map, and can be read after all of them died.
#pragma once

#include "tierline/types.hpp"

#include <pthread.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace tierline {

constexpr int kMaxClients = 64;
constexpr int kMaxStreams = 256;
constexpr int kMaxWaiters = 256;
constexpr int kMaxKernels = 4096;   // keys in the profile table, a power of two
constexpr int kQueue = 1024;        // launches remembered one by one per stream, as many as drivers take ahead; more merge into the newest
constexpr int kWaitBuckets = 40;    // bucket b counts waits of [2^b, 2^(b+1)) ns
constexpr int kTrace = 1 << 15;     // newest changes of the running set
constexpr std::uint64_t kMagic = 0x314e4c5245495400ULL;  // "\0TIERLN1"
constexpr std::uint32_t kVersion = 1;

// One admitted launch that has not ended. Invariant: sequence numbers grow along a queue.
struct Queued {
    std::uint64_t seq;
    Nanoseconds admitted_ns;
    Demand demand;
    std::int32_t kernel;   // row in the profile table, -1 = none
    std::int32_t company;  // 1: other clients had work when it was admitted, 2: they came later, 0: it had none
};

struct Stream {
    std::uint64_t id;           // as the program knows it; unique in a client
    std::uint64_t launched;     // newest sequence number given out
    std::uint64_t done;         // all up to this one have ended
    Nanoseconds last_done_ns;
    Demand peak;                // componentwise largest of the queue: the stream's demand; zero when idle
    std::int64_t queued_ns;     // sum of the predicted durations in the queue
    std::int32_t client;        // -1 = slot is free; only slots below `Region::streams_used` were ever used
    std::uint32_t first;        // ring of `count` entries from `first`
    std::uint32_t count;
    std::int32_t untracked;     // launches behind the newest one that its process watches
    std::array<Queued, kQueue> queue;
};

struct WaitHistogram {
    std::array<std::uint64_t, kWaitBuckets> count;
};

struct ClientStatistics {
    std::uint64_t launches;       // all that came to the gate, bypassed ones too
    std::uint64_t at_once;        // admitted without a wait
    std::uint64_t waited;
    std::uint64_t forced;
    std::uint64_t bypassed;
    std::uint64_t overflowed;
    std::uint64_t excess;         // admissions that took a sum over its limit (latency mode, forced, ungated)
    std::uint64_t denied_allocations;  // allocations refused for its memory cap
    Nanoseconds wait_ns;
    Nanoseconds longest_wait_ns;
    Nanoseconds predicted_busy_ns;  // sum of predicted durations of what ended
    Nanoseconds observed_busy_ns;   // time those took, wall time of busy streams
    Nanoseconds corun_ns;           // part of it with other clients' work on the device
    Nanoseconds lost_ns;            // high priority: time that best effort cost it, as seen
    Nanoseconds starved_ns;         // time with a launch waiting and none in flight
    // So the speed seen is predicted_busy_ns / (observed_busy_ns + starved_ns), 1.0 alone.
    WaitHistogram waits;
};

struct Client {
    std::array<char, 64> label;
    std::int32_t state;       // 0 free, 1 joined, 2 left (statistics stay until the slot is needed)
    std::int32_t pid;         // 0 = in-process tests and simulation: never reaped
    std::uint64_t pid_start;  // start time of the process: a reused pid is not the same client
    Priority priority;
    std::int32_t streams_active;
    std::int32_t waiting;
    std::int64_t memory_cap_bytes;  // 0 = no cap
    std::int64_t memory_bytes;
    Ppm sm_ppm;               // sums over its streams
    Ppm bw_ppm;
    std::int64_t in_flight_ns;  // sum of predicted durations in its queues
    // The iteration of a high-priority client: from its first launch to its next synchronisation.
    Nanoseconds iteration_ns;   // running mean; 0 = unknown
    Nanoseconds iteration_began_ns;  // 0 between iterations
    Nanoseconds last_done_ns;
    double clean_loss_ns;            // per launch, without best effort beside it: what lies between two kernels
    std::uint64_t clean_samples;
    Nanoseconds starved_since_ns;    // 0 = is not starved now
    ClientStatistics statistics;
};

struct Waiter {
    std::atomic<std::uint32_t> word;  // futex: changes when the verdict is in
    std::int32_t state;               // 0 free, 1 waits, 2 admitted, 3 admitted to be timed
    std::int32_t client;
    std::int32_t stream;
    std::int32_t kernel;
    Reason reason;                    // why it waits, later why it was admitted
    std::int32_t blamed;              // the client it waits for
    std::uint64_t serial;             // tells this wait from a later one in the same slot
    std::uint64_t key;
    std::uint64_t seq;                // set on admission
    Demand demand;
    Nanoseconds since_ns;
    Nanoseconds blamed_since_ns;
};

// What is known of a kernel key, and what was seen of it.
struct Kernel {
    std::uint64_t key;  // 0 = free row
    std::array<char, 128> name;
    std::array<std::uint32_t, 3> grid;
    std::array<std::uint32_t, 3> block;
    std::uint32_t registers;
    std::uint32_t smem_static_bytes;
    std::uint32_t smem_dynamic_bytes;
    std::uint32_t occupancy;  // blocks per SM
    double flops;             // 0 = unknown
    double bytes;
    Demand demand;
    Source source;
    BoundClass bound;
    std::int32_t samples;          // times measured alone
    double correction_sm;          // factors learnt from slowdowns seen, already in `demand`
    double correction_bw;
    std::uint64_t launches;
    std::uint64_t waited;
    Nanoseconds wait_ns;
    Nanoseconds observed_ns;       // summed time of the launches that were watched one by one
    std::uint64_t observed;
    std::uint64_t corun_observed;
    double corun_stretch;          // summed observed / predicted of those with company
    double harm;                   // high-priority time lost per time of this kernel beside it, learnt
};

// A best-effort launch as it bears on high priority.
struct Shadow {
    Nanoseconds begins_ns;     // at the earliest
    Nanoseconds ends_ns;       // 0 = has not been seen to end
    Nanoseconds predicted_ns;  // time alone
    std::uint64_t seq;
    std::int32_t stream;       // -1: exempt, its end is not seen
    std::int32_t kernel;       // -1 = free
    double lost_ns;            // its part of what high priority lost meanwhile
    double beside_ns;          // time in which high priority had work
};
constexpr int kShadows = 64;

// What best effort may still cost: high-priority time lost is seen at every end of high-priority work and charged here.
struct LossAccount {
    Nanoseconds balance_ns;      // below zero: best effort has cost more than the slowdown limit allows
    Nanoseconds settled_ns;      // when idle time was last credited
    Nanoseconds idle_ns;         // when high priority was last seen without work
    std::uint32_t next;          // of the ring of newest best-effort launches
    std::array<Shadow, kShadows> shadows;
};

// A change of the running set. `sm_ppm`, `bw_ppm` are the sums after it.
struct TraceEntry {
    Nanoseconds at_ns;
    std::uint64_t key;
    std::int32_t client;
    std::int32_t stream;
    Ppm sm_ppm;
    Ppm bw_ppm;
    std::uint8_t kind;  // 1 waits, 2 admitted, 3 ended
    Reason reason;
};

constexpr std::size_t kPolicyMemoryBytes = 4096;

struct Region {
    std::uint64_t magic;
    std::uint32_t version;
    std::uint32_t bytes;         // sizeof(Region): a region of another build is refused
    std::int32_t manager_pid;    // who made it; 0 = private
    std::atomic<std::uint32_t> attention;  // futex of the pollers: changes when fences are wanted
    std::atomic<std::uint32_t> contended;  // 1 while more than one client has work or somebody waits
    pthread_mutex_t mutex;       // robust and shared between processes in a file; unused by the simulation
    Config config;
    Nanoseconds created_ns;

    // Sums over all clients; they equal the sums of `Client::sm_ppm` at all times.
    Ppm sm_ppm;
    Ppm bw_ppm;
    Ppm peak_sm_ppm;             // largest sums while two or more clients had work
    Ppm peak_bw_ppm;
    std::int32_t clients_joined;
    std::int32_t clients_active; // with launches in flight
    std::int32_t waiting;
    std::int32_t streams_used;
    std::uint64_t waits;         // ever
    Nanoseconds next_look_ns;    // when a policy wants to look again though nothing happened; INT64_MAX = never
    std::uint64_t repairs;       // times a process died inside the lock and the state was recomputed
    std::uint64_t reaped;        // clients that died without leaving

    std::array<Client, kMaxClients> clients;
    std::array<Waiter, kMaxWaiters> waiters;
    std::array<Stream, kMaxStreams> streams;
    std::array<std::uint64_t, kMaxStreams / 64> busy_streams;  // bit set: the stream has launches in flight
    std::array<std::array<Nanoseconds, kMaxClients>, kMaxClients> waited_for_ns;  // [who waited][for whom]
    std::array<Kernel, kMaxKernels> kernels;
    std::int32_t kernel_count;
    alignas(16) std::array<std::byte, kPolicyMemoryBytes> policy_memory;
    LossAccount losses;
    std::uint64_t trace_next;    // entries written so far; the ring holds the newest kTrace
    std::array<TraceEntry, kTrace> trace;
};

// Makes `region` an empty one. `shared`: the mutex is robust and works between processes.
void format(Region& region, const Config& config, bool shared, std::int32_t manager_pid, Nanoseconds now_ns);

// Recomputes all sums from the queues, after a process died in the middle of a change.
void repair(Region& region);

// A region in memory of its own or in a file. Movable, not copyable; unmaps when destroyed.
class MappedRegion {
public:
    // A private region.
    static MappedRegion in_memory(const Config& config);
    // Creates the file (mode 0600) of full size and formats it, or, where it exists, opens it. Returns an empty
    // object and sets `error` to a sentence when that fails (no space, another version, no permission).
    static MappedRegion create(const char* path, const Config& config, char* error, std::size_t error_bytes);
    static MappedRegion open(const char* path, bool writable, char* error, std::size_t error_bytes);

    MappedRegion() = default;
    MappedRegion(MappedRegion&& other) noexcept;
    MappedRegion& operator=(MappedRegion&& other) noexcept;
    ~MappedRegion();

    explicit operator bool() const { return region_ != nullptr; }
    Region& operator*() const { return *region_; }
    Region* operator->() const { return region_; }
    // Forgets the mapping without unmapping it (a forked child, a process on its way out).
    void release() { region_ = nullptr; }

private:
    Region* region_ = nullptr;
};

}  // namespace tierline
