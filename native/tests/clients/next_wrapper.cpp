// A library of somebody else that wraps cuLaunchKernel and hands on to the next one.
#include <dlfcn.h>

#include <atomic>

#include "prototypes.hpp"

namespace {
std::atomic<unsigned long long> g_seen{0};
}

extern "C" unsigned long long wrapper_launches() { return g_seen.load(); }

extern "C" CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                                   unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                                   CUstream stream, void** parameters, void** extra) {
    static const auto next = reinterpret_cast<decltype(&cuLaunchKernel)>(::dlsym(RTLD_NEXT, "cuLaunchKernel"));
    g_seen.fetch_add(1);
    return next(function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared, stream, parameters, extra);
}
