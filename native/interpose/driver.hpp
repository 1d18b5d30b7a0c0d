// The real driver: one table of its functions, filled once, without a lock and without ending up in our own exports.
#pragma once

#include "abi/cuda.hpp"

#include <atomic>

namespace tierline::interpose {

#define TIERLINE_HOOK(symbol, base, version, per_thread, implementation, parameters, arguments) \
    using Fn_##symbol = CUresult(*) parameters;
#include "hooks.def"

struct Driver {
#define TIERLINE_HOOK(symbol, base, version, per_thread, implementation, parameters, arguments) Fn_##symbol symbol;
#include "hooks.def"
#define TIERLINE_NEED(symbol, parameters) CUresult(*symbol) parameters;
#include "needs.def"
};

extern Driver g_driver;
extern std::atomic<bool> g_driver_ready;

// Fills the table. False when there is no libcuda.
bool load_driver();

// The table; entries that this driver lacks are null. Null when there is no libcuda.
inline const Driver* driver() {
    if (__builtin_expect(g_driver_ready.load(std::memory_order_acquire), 1)) return &g_driver;
    return load_driver() ? &g_driver : nullptr;
}

// The libc's dlsym, never ours.
using Dlsym = void* (*)(void* handle, const char* name);
Dlsym real_dlsym();

// A handle of the libcuda that is loaded already, or null. Loads nothing.
void* loaded_driver();

// A handle of a loaded library whose file name begins so ("libcublas.so"), or null. Loads nothing.
void* find_loaded_library(const char* file_name_start);

}  // namespace tierline::interpose
