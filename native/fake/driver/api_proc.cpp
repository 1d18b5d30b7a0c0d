// How a program finds the functions: cuGetProcAddress in its two forms, and the private tables.
#include <cstring>

#include "driver.hpp"

using namespace tierline::fakecuda;

// Visible, for the symbols they name are; the library is linked so that it finds its own and not an interposer's.
#pragma GCC visibility push(default)
extern "C" {
#define FAKE_ENTRY(base, version, per_thread, symbol) CUresult fakecuda_address_of_##symbol() __asm__(#symbol);
#include "entries.def"
#undef FAKE_ENTRY
}
#pragma GCC visibility pop

namespace {

struct Address {
    const char* base;
    int version;
    bool per_thread;
    void* address;
};

// The addresses alone matter; the functions' types are those of their definitions.
const Address kAddresses[] = {
#define FAKE_ENTRY(base, version, per_thread, symbol) \
    {#base, version, per_thread != 0, reinterpret_cast<void*>(&fakecuda_address_of_##symbol)},
#include "entries.def"
#undef FAKE_ENTRY
};

CUresult look_up(Entry entry, const char* symbol, void** out, int version, cuuint64_t flags,
                 CUdriverProcAddressQueryResult* status, bool first_form) {
    return call(entry, Need::nothing, [&](Session&) -> CUresult {
        constexpr cuuint64_t kKnown = CU_GET_PROC_ADDRESS_LEGACY_STREAM | CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM;
        if (symbol == nullptr || out == nullptr || (flags & ~kKnown) != 0 || (flags & kKnown) == kKnown)
            return CUDA_ERROR_INVALID_VALUE;
        if (version > config().driver_version) return CUDA_ERROR_INVALID_VALUE;
        const bool wants_per_thread = (flags & CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM) != 0;
        bool known = false;
        const Address* best = nullptr;
        for (const Address& address : kAddresses) {
            if (std::strcmp(address.base, symbol) != 0 || address.version > config().driver_version) continue;
            known = true;
            if (address.version > version || (address.per_thread && !wants_per_thread)) continue;
            // A per-thread form goes before any other; among equals the newest.
            const bool better = best == nullptr || (address.per_thread && !best->per_thread) ||
                                (address.per_thread == best->per_thread && address.version > best->version);
            if (better) best = &address;
        }
        *out = best != nullptr ? best->address : nullptr;
        const auto found = best != nullptr ? CU_GET_PROC_ADDRESS_SUCCESS
                           : known         ? CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT
                                           : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
        if (status != nullptr) *status = found;
        if (log_enabled())
            call_detail()
                .text("name", symbol)
                .number("version", version)
                .number("flags", static_cast<std::int64_t>(flags))
                .number("status", found);
        // The second form tells it by the status alone (cuda.h); the first has no other way than an error.
        return first_form && best == nullptr ? CUDA_ERROR_NOT_FOUND : CUDA_SUCCESS;
    });
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

CUresult cuGetProcAddress(const char* symbol, void** out, int version, cuuint64_t flags) {
    return look_up(Entry::cuGetProcAddress, symbol, out, version, flags, nullptr, true);
}

CUresult cuGetProcAddress_v2(const char* symbol, void** out, int version, cuuint64_t flags,
                             CUdriverProcAddressQueryResult* status) {
    return look_up(Entry::cuGetProcAddress_v2, symbol, out, version, flags, status, false);
}

// Private tables of the real driver: this one has none. The calls are counted, for an interposer must leave them alone.
CUresult cuGetExportTable(const void** out, const CUuuid* id) {
    return call(Entry::cuGetExportTable, Need::nothing, [&](Session&) -> CUresult {
        if (out == nullptr || id == nullptr) return CUDA_ERROR_INVALID_VALUE;
        *out = nullptr;
        return CUDA_ERROR_NOT_FOUND;
    });
}

}  // extern "C"
#pragma GCC visibility pop
