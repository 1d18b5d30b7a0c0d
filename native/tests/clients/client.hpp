// What the client programs share: each is a small stranger to Tierline that uses the driver in one particular way and
// prints what it saw as one JSON object. They run with the interposer preloaded and without it.
#pragma once

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "prototypes.hpp"

namespace client {

// The kernels of most clients: 264 blocks of 256 threads fill an H200 once or twice.
constexpr const char* kImage =
    "FAKECUDA 1\n"
    "kernel compute_kernel regs=64 flops=2e7 bytes=4096 params=8,4\n"
    "kernel memory_kernel regs=32 flops=1e4 bytes=1e6 params=8,4\n"
    "kernel tiny_kernel regs=16 flops=1e3 bytes=1e3 params=8,4\n"
    "kernel no_argument_kernel regs=16 flops=1e3 bytes=1e3\n"
    "kernel ncclDevKernel_AllReduce_Sum_bf16_RING_LL regs=96 flops=1e4 bytes=1e5 floor_ns=20000 params=8,4\n";

inline std::string base(const char* path) {
    const char* slash = std::strrchr(path, '/');
    return slash != nullptr ? slash + 1 : path;
}

// The file that a function lies in: which library answered for it.
template <class Function>
std::string object_of(Function* function) {
    Dl_info about{};
    void* address = nullptr;
    std::memcpy(&address, &function, sizeof address);
    return address != nullptr && ::dladdr(address, &about) != 0 && about.dli_fname != nullptr ? base(about.dli_fname)
                                                                                              : "";
}

// The name that the function has there.
inline std::string symbol_of(void* address) {
    Dl_info about{};
    return address != nullptr && ::dladdr(address, &about) != 0 && about.dli_sname != nullptr ? about.dli_sname : "";
}

[[noreturn]] inline void fail(const std::string& what, int code) {
    std::printf("{\"failed\": \"%s\", \"rc\": %d}\n", what.c_str(), code);
    std::exit(1);
}

inline void must(int result, const char* what) {
    if (result != 0) fail(what, result);
}

inline long long option(int count, char** values, const char* name, long long otherwise) {
    for (int i = 1; i + 1 < count; ++i) {
        if (std::strcmp(values[i], name) == 0) return std::atoll(values[i + 1]);
    }
    return otherwise;
}

inline bool flag(int count, char** values, const char* name) {
    for (int i = 1; i < count; ++i) {
        if (std::strcmp(values[i], name) == 0) return true;
    }
    return false;
}

}  // namespace client
