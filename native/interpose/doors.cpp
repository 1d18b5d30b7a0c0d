// The doors to the driver. dlsym in both of its versions, cuGetProcAddress in both of its forms; the third door, plain
// exports, is exports.cpp. cuGetExportTable has no hook: its answer is private to the driver and its runtime.
#include "doors.hpp"

#include "driver.hpp"
#include "hooks.hpp"
#include "log.hpp"
#include "tag_hooks.hpp"
#include "thread.hpp"

#include <dlfcn.h>
#include <link.h>

#include <cstring>

namespace tierline::interpose {

// The addresses are those of our own definitions (linked with -Bsymbolic), whatever the global scope resolves them to.
const Hook g_hooks[] = {
#define TIERLINE_HOOK(symbol, base, version, per_thread, implementation, parameters, arguments)                 \
    {#symbol, #base, version, per_thread != 0, reinterpret_cast<void*>(&::symbol),                              \
     reinterpret_cast<void**>(&g_driver.symbol)},
#include "hooks.def"
};
const std::size_t g_hook_count = sizeof g_hooks / sizeof g_hooks[0];

namespace {

constexpr std::size_t kBuckets = 512;  // a power of two, several times the number of hooks

std::size_t hash_of(const char* name) {
    std::size_t hash = 5381;
    for (; *name != '\0'; ++name) hash = hash * 33 ^ static_cast<unsigned char>(*name);
    return hash;
}

// Open addressing, filled on first use by whoever comes first: all threads write the same values.
struct Index {
    std::atomic<bool> ready;
    std::atomic<unsigned short> slots[kBuckets];  // 1 + row
};
Index g_index;

void fill_index() {
    unsigned short slots[kBuckets] = {};
    for (std::size_t row = 0; row < g_hook_count; ++row) {
        std::size_t slot = hash_of(g_hooks[row].symbol) % kBuckets;
        while (slots[slot] != 0) slot = (slot + 1) % kBuckets;
        slots[slot] = static_cast<unsigned short>(row + 1);
    }
    for (std::size_t slot = 0; slot < kBuckets; ++slot) {
        g_index.slots[slot].store(slots[slot], std::memory_order_relaxed);
    }
    g_index.ready.store(true, std::memory_order_release);
}

bool is_ours(const void* address) {
    static std::atomic<const void*> base{nullptr};
    const void* own = base.load(std::memory_order_relaxed);
    Dl_info info{};
    if (own == nullptr) {
        if (dladdr(reinterpret_cast<const void*>(&fill_index), &info) == 0) return false;
        own = info.dli_fbase;
        base.store(own, std::memory_order_relaxed);
    }
    return dladdr(address, &info) != 0 && info.dli_fbase == own;
}

// Does the address lie in the library (its file name begins so: libcuda.so, libcuda.so.1, libcuda.so.580.95)?
bool lies_in(const void* address, const char* library) {
    Dl_info info{};
    if (dladdr(address, &info) == 0 || info.dli_fname == nullptr) return false;
    const char* slash = std::strrchr(info.dli_fname, '/');
    const char* name = slash != nullptr ? slash + 1 : info.dli_fname;
    return std::strncmp(name, library, std::strlen(library)) == 0;
}

// What a name of ours looks like to the doors: which library really has it, and what we hand out.
struct Wanted {
    const char* library;
    void* ours;
    void** real;  // to remember what a look-up found, or null
};

bool is_wanted(const char* name, Wanted& wanted) {
    if (name[0] != 'c' || name[1] != 'u') return false;
    if (const Hook* hook = hook_of_symbol(name)) {
        wanted = {"libcuda.so", hook->ours, hook->real};
        return true;
    }
    if (const TagHook* hook = tag_hook_of(name)) {
        wanted = {hook->library, hook->ours, nullptr};
        return true;
    }
    return false;
}

void* loaded_library_of(const Wanted& wanted) {
    if (wanted.real != nullptr) return loaded_driver();
    return find_loaded_library(wanted.library);
}

// Remembers the real function that the program found: its driver may lie where our own look-up would not find it.
void remember(const Wanted& wanted, void* found) {
    if (wanted.real != nullptr && __atomic_load_n(wanted.real, __ATOMIC_RELAXED) == nullptr) {
        __atomic_store_n(wanted.real, found, __ATOMIC_RELAXED);
    }
}

// RTLD_NEXT as the caller means it: the first definition behind the caller's own object in load order. The C library
// looks from the object that calls it, which would be ours; so the objects are walked here.
void* next_after(const void* caller, const char* name, const Wanted& wanted) {
    link_map* map = nullptr;
    Dl_info info{};
    if (dladdr1(caller, &info, reinterpret_cast<void**>(&map), RTLD_DL_LINKMAP) == 0 || map == nullptr) return nullptr;
    for (map = map->l_next; map != nullptr; map = map->l_next) {
        if (map->l_name == nullptr || map->l_name[0] == '\0') continue;
        void* object = dlopen(map->l_name, RTLD_LAZY | RTLD_NOLOAD);
        if (object == nullptr) continue;
        void* found = real_dlsym()(object, name);
        dlclose(object);
        link_map* owner = nullptr;
        if (found == nullptr || dladdr1(found, &info, reinterpret_cast<void**>(&owner), RTLD_DL_LINKMAP) == 0) continue;
        if (owner != map) continue;  // one of its dependencies has it; that comes later in this walk
        // We come later in the order of an object that stands before us, or the library itself comes: ours either way.
        if (is_ours(found)) {
            if (loaded_library_of(wanted) != nullptr) return wanted.ours;
            continue;
        }
        return lies_in(found, wanted.library) ? (remember(wanted, found), wanted.ours) : found;
    }
    return nullptr;
}

// The answer of dlsym for a name of ours. It is ours only where the real look-up would have found the library's.
void* answer(void* handle, const char* name, const Wanted& wanted, const void* caller) {
    if (handle == RTLD_NEXT) {
        void* found = next_after(caller, name, wanted);
        return found != nullptr ? found : real_dlsym()(RTLD_NEXT, name);  // sets dlerror when there is none behind us
    }
    void* found = real_dlsym()(handle, name);
    if (found == nullptr) return nullptr;
    if (is_ours(found)) {
        // Our plain export was in the way (RTLD_DEFAULT, the program's own handle): is there a real one?
        if (loaded_library_of(wanted) != nullptr) return wanted.ours;
        return real_dlsym()(RTLD_NEXT, name);
    }
    if (!lies_in(found, wanted.library)) return found;  // a wrapper of somebody else: its own business
    remember(wanted, found);
    return wanted.ours;
}

}  // namespace

// Out of line, without locals that live across the tail call below.
__attribute__((noinline)) bool is_named(const char* name) {
    Wanted wanted{};
    return name != nullptr && is_wanted(name, wanted);
}

__attribute__((noinline)) void* answer_named(void* handle, const char* name, const void* caller) {
    Wanted wanted{};
    is_wanted(name, wanted);
    return answer(handle, name, wanted, caller);
}

const Hook* hook_of_symbol(const char* symbol) {
    if (!g_index.ready.load(std::memory_order_acquire)) fill_index();
    for (std::size_t slot = hash_of(symbol) % kBuckets;; slot = (slot + 1) % kBuckets) {
        const unsigned short row = g_index.slots[slot].load(std::memory_order_relaxed);
        if (row == 0) return nullptr;
        if (std::strcmp(g_hooks[row - 1].symbol, symbol) == 0) return &g_hooks[row - 1];
    }
}

const Hook* hook_of_request(const char* base, int version, bool per_thread) {
    const Hook* best = nullptr;
    bool has_per_thread = false;
    for (std::size_t row = 0; row < g_hook_count; ++row) {
        const Hook& hook = g_hooks[row];
        if (hook.per_thread && std::strcmp(hook.base, base) == 0) has_per_thread = true;
    }
    for (std::size_t row = 0; row < g_hook_count; ++row) {
        const Hook& hook = g_hooks[row];
        if (hook.version > version || hook.per_thread != (per_thread && has_per_thread)) continue;
        if (std::strcmp(hook.base, base) != 0) continue;
        if (best == nullptr || hook.version > best->version) best = &hook;
    }
    if (best == nullptr) best = hook_of_symbol(base);  // some ask by the full symbol ("cuMemAlloc_v2")
    return best;
}

namespace {

// Swaps the driver's answer for ours when we know exactly which function it is: asked again for the version from which
// our entry holds, the driver must give the same address. A function whose interface changed in a driver newer than our
// table differs there, and passes untouched.
template <class Ask>
void swap_answer(const char* symbol, void** pfn, int version, cuuint64_t flags, const Ask& ask) {
    const Hook* hook = hook_of_request(symbol, version, (flags & CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM) != 0);
    if (hook == nullptr) return;
    void* confirmed = nullptr;
    if (hook->version != version && (ask(&confirmed, hook->version) != CUDA_SUCCESS || confirmed != *pfn)) {
        static Once once;
        log_once(once, "%s at version %d is newer than the table (%d): it passes untouched", symbol, version,
                 kCheckedVersion);
        return;
    }
    if (__atomic_load_n(hook->real, __ATOMIC_RELAXED) == nullptr) __atomic_store_n(hook->real, *pfn, __ATOMIC_RELAXED);
    *pfn = hook->ours;
}

}  // namespace

CUresult get_proc_address(Site<Fn_cuGetProcAddress> site, const char* symbol, void** pfn, int version,
                          cuuint64_t flags) {
    const CUresult result = site.real(symbol, pfn, version, flags);
    if (result == CUDA_SUCCESS && symbol != nullptr && pfn != nullptr && *pfn != nullptr) {
        swap_answer(symbol, pfn, version, flags,
                    [&](void** found, int asked) { return site.real(symbol, found, asked, flags); });
    }
    return result;
}

CUresult get_proc_address_v2(Site<Fn_cuGetProcAddress_v2> site, const char* symbol, void** pfn, int version,
                             cuuint64_t flags, CUdriverProcAddressQueryResult* status) {
    const CUresult result = site.real(symbol, pfn, version, flags, status);
    if (result == CUDA_SUCCESS && symbol != nullptr && pfn != nullptr && *pfn != nullptr) {
        swap_answer(symbol, pfn, version, flags, [&](void** found, int asked) {
            CUdriverProcAddressQueryResult ignored{};
            return site.real(symbol, found, asked, flags, &ignored);
        });
    }
    return result;
}

}  // namespace tierline::interpose

// Names that are not ours leave by a tail call, so that the C library sees the program as its caller: RTLD_NEXT and
// RTLD_DEFAULT then mean exactly what they mean without us. CMakeLists.txt has this file optimised in every build type.
extern "C" {

#define TIERLINE_DLSYM(function)                                                                            \
    __attribute__((visibility("default"))) void* function(void* handle, const char* name) {                 \
        using namespace tierline::interpose;                                                                \
        if (!is_named(name)) return real_dlsym()(handle, name);                                             \
        return answer_named(handle, name, __builtin_return_address(0));                                     \
    }

TIERLINE_DLSYM(tierline_dlsym_default)
#if defined(__x86_64__)
TIERLINE_DLSYM(tierline_dlsym_old)
__asm__(".symver tierline_dlsym_default, dlsym@@GLIBC_2.34");
__asm__(".symver tierline_dlsym_old, dlsym@GLIBC_2.2.5");
#elif defined(__aarch64__)
TIERLINE_DLSYM(tierline_dlsym_old)
__asm__(".symver tierline_dlsym_default, dlsym@@GLIBC_2.34");
__asm__(".symver tierline_dlsym_old, dlsym@GLIBC_2.17");
#else
#error "dlsym's symbol versions of this architecture are not known: add them here and in exports.map.in"
#endif
}
