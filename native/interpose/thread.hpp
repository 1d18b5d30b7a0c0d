// What the interposer keeps per thread. Plain zero-initialised data in the static TLS block: touching it calls nothing,
// so hooks may run before any initialisation and inside allocators.
#pragma once

#include "abi/cuda.hpp"

#include <cstdint>

namespace tierline::interpose {

struct Lane;

// What a library hook knows of the kernels that its call is going to launch.
struct Tag {
    std::uint64_t shape;  // hash of (op, extents, dtype); 0 = no tag
    double flops;         // of the whole call; given to its first main kernel, then 0
    double bytes;
    int depth;            // a tagged call that calls another one keeps its own tag
};

struct LaneCache {
    std::uintptr_t handle;
    std::uint64_t generation;
    std::uint64_t context_serial;
    int client_tag;
    Lane* lane;
};

struct KernelCache {
    CUfunction function;
    std::uint32_t grid[3];
    std::uint32_t block[3];
    std::uint32_t smem;
    std::int32_t row;
    std::uint64_t shape;
    std::uint64_t generation;
    bool exempt;
};

constexpr int kLaneCache = 8;
constexpr int kKernelCache = 128;

struct Thread {
    int depth;                // > 0: inside a hook; what the driver calls itself goes straight through
    int client_tag;           // 1 + client id, 0 = none
    std::uint64_t ticket;     // see tierline_gate_ticket
    std::uint64_t number;     // of this thread, 0 = not given yet
    CUcontext context;        // the current one, when `context_known`
    bool context_known;
    std::uint64_t context_serial;
    Tag tag;
    LaneCache lanes[kLaneCache];
    KernelCache kernels[kKernelCache];
};

extern __thread Thread t_thread __attribute__((tls_model("initial-exec")));

// Marks the thread as inside a hook.
class Inside {
public:
    Inside() { ++t_thread.depth; }
    ~Inside() { --t_thread.depth; }
    Inside(const Inside&) = delete;
    Inside& operator=(const Inside&) = delete;
};

}  // namespace tierline::interpose
