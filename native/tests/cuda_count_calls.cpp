// Counts this process's calls into the CUDA driver by name, through CUPTI's callbacks: a second opinion on how many calls the
// interposer adds to a launch, since it sees the interposer's own calls too. scripts/gpu builds and loads it; it needs
// neither CUPTI's headers nor its library to be built. CUPTI slows calls down, so nothing is timed while it counts.
#include <dlfcn.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdio>

namespace {

// The beginning of CUpti_CallbackData.
struct CallbackData {
    int site;  // 0 = entry
    const char* function;
};

using Callback = void (*)(void* user, int domain, std::uint32_t id, const void* data);
using Subscribe = int (*)(void** subscriber, Callback callback, void* user);
using EnableDomain = int (*)(std::uint32_t enable, void* subscriber, int domain);

constexpr int kDriverDomain = 1;
constexpr std::uint32_t kIds = 4096;  // callback ids count up from 1; there are fewer than a thousand

std::array<std::atomic<const char*>, kIds> g_names;
std::array<std::atomic<std::uint64_t>, kIds> g_counts;

void called(void*, int domain, std::uint32_t id, const void* data) {
    const auto* call = static_cast<const CallbackData*>(data);
    if (domain != kDriverDomain || id >= kIds || call->site != 0) return;
    g_names[id].store(call->function, std::memory_order_relaxed);
    g_counts[id].fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

// 0, or why not: -1 there is no CUPTI, -2 not one that is known, else CUPTI's own code.
extern "C" int tierline_count_start() {
    void* cupti = nullptr;
    for (const char* name : {"libcupti.so.13", "libcupti.so.12", "libcupti.so"}) {
        if (cupti == nullptr) cupti = dlopen(name, RTLD_NOW | RTLD_GLOBAL);
    }
    if (cupti == nullptr) return -1;
    const auto subscribe = reinterpret_cast<Subscribe>(dlsym(cupti, "cuptiSubscribe"));
    const auto enable = reinterpret_cast<EnableDomain>(dlsym(cupti, "cuptiEnableDomain"));
    if (subscribe == nullptr || enable == nullptr) return -2;
    void* subscriber = nullptr;
    if (const int code = subscribe(&subscriber, called, nullptr)) return code;
    return enable(1, subscriber, kDriverDomain);
}

extern "C" void tierline_count_reset() {
    for (auto& count : g_counts) count.store(0, std::memory_order_relaxed);
}

// Writes a line "NAME COUNT" for each function that was called; returns the length it would need.
extern "C" int tierline_count_read(char* text, int bytes) {
    int used = 0;
    for (std::uint32_t id = 0; id < kIds; ++id) {
        const std::uint64_t count = g_counts[id].load(std::memory_order_relaxed);
        if (count == 0) continue;
        const bool fits = used < bytes;
        used += std::snprintf(fits ? text + used : nullptr, fits ? static_cast<std::size_t>(bytes - used) : 0, "%s %llu\n",
                              g_names[id].load(std::memory_order_relaxed), static_cast<unsigned long long>(count));
    }
    return used;
}
