// The memory of one simulated device that several processes share: a mapped file.
//
// A process may be killed at any instruction, also in the middle of a change to the device. So that the others find a
// whole device: every change is first written to a journal of commands (its tail moves last), and from time to time the
// device is copied into one of two checkpoints. Whoever gets the lock of a dead owner (robust mutex) copies the last
// checkpoint back and repeats the journal; the engine is deterministic, so the device is as it was.
#pragma once

#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <string>

namespace tierline::fakecuda {

// Up to whole pages.
inline std::uint64_t paged(std::uint64_t bytes) { return (bytes + 4095) / 4096 * 4096; }

class SharedFile {
public:
    static constexpr int kMembers = 64;
    static constexpr int kHostCalls = 1024;
    static constexpr std::uint64_t kJournalBytes = std::uint64_t{4} << 20;

    struct Member {
        std::int32_t pid;           // 0: free
        std::int32_t context;       // its first context on the device; -1 before
        std::uint32_t client;       // number of the client, never used twice
        std::uint64_t start_ticks;  // with the pid it names one process, also after the pid is used again
        std::uint64_t used_bytes;   // device memory it holds
        std::uint64_t contexts;     // bit i: the engine's context i is this process's
        char label[40];
    };

    // A host function whose turn came, to be called by the process that enqueued it.
    struct HostCall {
        std::int64_t op;  // 0: free
        std::int32_t stream;
        std::uint32_t client;
        std::uint64_t cookie;
    };

    struct Interval {
        std::int64_t submitted_ns, start_ns, end_ns;
        std::int32_t kernel, stream;
        std::uint32_t client, reserved;
    };

    struct Header {
        std::uint64_t magic;
        pthread_mutex_t lock;
        std::int64_t base_real_ns;              // CLOCK_MONOTONIC at which device time began
        std::atomic<std::uint64_t> checkpoint;  // generation << 1 | which of the two copies is whole
        std::atomic<std::uint64_t> tail;        // generation << 32 | bytes of the journal; another generation: empty
        std::atomic<std::uint64_t> intervals;   // how many stand behind the fixed part
        std::uint32_t keep_intervals;           // some member wants the truth
        std::uint32_t next_client;
        std::int32_t last_dead_check;
        char settings[64];  // device and clock; the same for all members
        Member members[kMembers];
        HostCall host_calls[kHostCalls];
    };

    // Maps the file, made if absent, and joins as a member. `fresh` is set when no living process uses the file: the
    // caller must then prepare the device and call checkpoint(), before unlock(). Holds the lock on success. Returns a
    // sentence that says what failed, or an empty string.
    std::string join(const std::string& path, const std::string& settings, std::uint64_t state_bytes, bool& fresh);
    // Ends the exclusive access that join() gave.
    void joined();
    // The member's slot becomes free; the lock must be held.
    void leave();

    // True when the last owner died within: the caller must restore() and repeat the journal.
    bool lock();
    void unlock();

    Header& header() { return *header_; }
    void* state() { return state_; }
    Member& self() { return header_->members[slot_]; }

    // Under the lock. False when the journal is full: take a checkpoint, then the record fits (or never will).
    bool journal(const void* record, std::uint32_t size);
    void checkpoint();
    void restore();
    // Record at `offset` of the journal; advances `offset`. Null at the end.
    const void* record(std::uint64_t& offset, std::uint32_t& size) const;

    void add_interval(const Interval& interval);
    const Interval* intervals() const { return intervals_; }

    // A member that died without leaving: its slot, or -1.
    int find_dead() const;
    void free_slot(int slot) { header_->members[slot] = Member{}; }

private:
    bool grow(std::uint64_t bytes);

    Header* header_ = nullptr;
    char* journal_ = nullptr;
    char* state_ = nullptr;
    char* copies_[2] = {nullptr, nullptr};
    Interval* intervals_ = nullptr;
    std::uint64_t state_bytes_ = 0;
    std::uint64_t fixed_bytes_ = 0;
    std::uint64_t file_bytes_ = 0;
    int file_ = -1;
    int slot_ = -1;
};

}  // namespace tierline::fakecuda
