#include "driver.hpp"

#include "log.hpp"

#include <dlfcn.h>
#include <link.h>

#include <cstring>

namespace tierline::interpose {

Driver g_driver;
std::atomic<bool> g_driver_ready{false};

namespace {

std::atomic<Dlsym> g_dlsym{nullptr};

// Versions under which the C library has exported dlsym, newest first.
constexpr const char* kDlsymVersions[] = {"GLIBC_2.34", "GLIBC_2.2.5", "GLIBC_2.17", "GLIBC_2.27", "GLIBC_2.0"};

// Publishes without a lock: threads that race here store the same addresses.
template <class Function>
void fill(void* library, const char* name, Function& entry) {
    if (__atomic_load_n(&entry, __ATOMIC_RELAXED) != nullptr) return;
    __atomic_store_n(&entry, reinterpret_cast<Function>(real_dlsym()(library, name)), __ATOMIC_RELAXED);
}

}  // namespace

Dlsym real_dlsym() {
    Dlsym found = g_dlsym.load(std::memory_order_relaxed);
    if (__builtin_expect(found != nullptr, 1)) return found;
    for (const char* version : kDlsymVersions) {
        found = reinterpret_cast<Dlsym>(dlvsym(RTLD_NEXT, "dlsym", version));
        if (found != nullptr) break;
    }
    g_dlsym.store(found, std::memory_order_relaxed);
    return found;
}

void* loaded_driver() {
    if (void* library = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD)) return library;
    return find_loaded_library("libcuda.so");
}

bool load_driver() {
    if (real_dlsym() == nullptr) return false;
    void* library = loaded_driver();
    if (library == nullptr) library = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
    if (library == nullptr) return false;
#define TIERLINE_HOOK(symbol, base, version, per_thread, implementation, parameters, arguments) \
    fill(library, #symbol, g_driver.symbol);
#include "hooks.def"
#define TIERLINE_NEED(symbol, parameters) fill(library, #symbol, g_driver.symbol);
#include "needs.def"
    g_driver_ready.store(true, std::memory_order_release);
    return true;
}

void* find_loaded_library(const char* file_name_start) {
    struct Search {
        const char* start;
        char path[512];
    } search{file_name_start, {}};
    dl_iterate_phdr(
        [](dl_phdr_info* info, std::size_t, void* data) {
            auto* wanted = static_cast<Search*>(data);
            const char* slash = std::strrchr(info->dlpi_name, '/');
            const char* name = slash != nullptr ? slash + 1 : info->dlpi_name;
            if (std::strncmp(name, wanted->start, std::strlen(wanted->start)) != 0) return 0;
            if (std::strlen(info->dlpi_name) >= sizeof wanted->path) return 0;
            std::strcpy(wanted->path, info->dlpi_name);
            return 1;
        },
        &search);
    return search.path[0] != '\0' ? dlopen(search.path, RTLD_LAZY | RTLD_NOLOAD) : nullptr;
}

}  // namespace tierline::interpose
