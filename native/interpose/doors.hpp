// What the three doors hand out: one row a hook, made from hooks.def.
#pragma once

#include <cstddef>

namespace tierline::interpose {

struct Hook {
    const char* symbol;
    const char* base;
    int version;
    bool per_thread;
    void* ours;
    void** real;  // its entry in the driver table
};

extern const Hook g_hooks[];
extern const std::size_t g_hook_count;

// The hook of an exported symbol, or null. No allocation, no lock.
const Hook* hook_of_symbol(const char* symbol);
// The hook that stands in for what cuGetProcAddress answers, or null.
const Hook* hook_of_request(const char* base, int version, bool per_thread);

// The newest CUDA version whose prototypes the list was checked against.
constexpr int kCheckedVersion = 13000;

}  // namespace tierline::interpose
