// From a function handle and a launch shape to a row of the region's table of kernels.
#pragma once

#include "abi/cuda.hpp"
#include "profiles.hpp"

#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <unordered_map>

namespace tierline::interpose {

struct Session;
struct Tag;

struct LaunchShape {
    CUfunction function;
    std::array<std::uint32_t, 3> grid;
    std::array<std::uint32_t, 3> block;
    std::uint32_t smem;
};

struct KernelChoice {
    int row;      // -1 = the table is full or the kernel has no name
    bool exempt;  // of a collective: never held behind another client's work
};

class Kernels {
public:
    explicit Kernels(Session& session) : session_(session) {}

    // By way of this thread's cache. Driver calls only for what was not seen before.
    KernelChoice choose(const LaunchShape& shape);
    // Without the cache and without a tag.
    KernelChoice look_up(const LaunchShape& shape, Tag* tag);

    void named(CUfunction function, const char* name);
    void named(CUkernel kernel, const char* name);
    void resolved(CUkernel kernel, CUfunction function);
    // Handles may be used again for other kernels.
    void forget();
    void load_profiles(const std::string& path) { profiles_.load(path); }

private:
    struct Function {
        std::string name;
        CUfunction function = nullptr;  // what a kernel handle stands for
        bool asked = false;             // the driver was asked for the rest
        bool exempt = false;
        std::uint32_t registers = 0;
        std::uint32_t smem_static = 0;
    };

    Function facts_of(CUfunction handle);

    Session& session_;
    Profiles profiles_;
    std::mutex mutex_;
    std::unordered_map<const void*, Function> functions_;
    std::unordered_map<const void*, bool> kernel_handles_;
};

// Grows when cached rows may be wrong: an unloaded module, a fork.
extern std::atomic<std::uint64_t> g_kernel_generation;

// Kernels of collectives must never wait for other clients: their peers on other devices wait for them.
bool is_collective(const char* name);

}  // namespace tierline::interpose
