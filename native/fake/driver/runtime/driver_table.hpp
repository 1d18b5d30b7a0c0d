// How a library over the driver reaches it: by itself, as the real ones (and the static runtime inside them) do:
// dlopen of libcuda.so.1, dlsym of cuGetProcAddress, and that for all others. No symbol of the driver is linked.
#pragma once

#include <dlfcn.h>

#include <cstddef>
#include <cstdint>

#include "cuda.hpp"

namespace tierline::fakelib {

constexpr cuuint64_t kLegacy = CU_GET_PROC_ADDRESS_LEGACY_STREAM;
constexpr cuuint64_t kPerThread = CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM;

class DriverTable {
public:
    DriverTable() {
        void* const library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
        if (library == nullptr) return;
        address_of_ = reinterpret_cast<AddressOf>(::dlsym(library, "cuGetProcAddress_v2"));
        if (address_of_ == nullptr) return;
        take(init, "cuInit", 2000);
        take(retain, "cuDevicePrimaryCtxRetain", 7000);
        take(set_current, "cuCtxSetCurrent", 4000);
        take(get_current, "cuCtxGetCurrent", 4000);
        take(version, "cuDriverGetVersion", 2020);
        take(library_load, "cuLibraryLoadData", 12000);
        take(library_kernel, "cuLibraryGetKernel", 12000);
        take(launch, "cuLaunchKernel", 4000);
        take(launch_per_thread, "cuLaunchKernel", 7000, kPerThread);
        take(launch_ex, "cuLaunchKernelEx", 11060);
        take(launch_cooperative, "cuLaunchCooperativeKernel", 9000);
    }

    template <class Function>
    void take(Function*& out, const char* name, int since, cuuint64_t flags = kLegacy) const {
        void* found = nullptr;
        CUdriverProcAddressQueryResult status = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
        if (address_of_ != nullptr && address_of_(name, &found, since, flags, &status) == CUDA_SUCCESS &&
            status == CU_GET_PROC_ADDRESS_SUCCESS) {
            out = reinterpret_cast<Function*>(found);
        }
    }

    bool good() const { return launch != nullptr && init != nullptr; }

    // The primary context of device 0 becomes current for this thread, unless it has one.
    CUresult enter() const {
        if (!good()) return CUDA_ERROR_STUB_LIBRARY;
        CUcontext now = nullptr;
        CUresult result = get_current(&now);
        if (result == CUDA_SUCCESS && now != nullptr) return CUDA_SUCCESS;
        result = init(0);
        if (result == CUDA_SUCCESS) result = retain(&now, 0);
        return result == CUDA_SUCCESS ? set_current(now) : result;
    }

    CUresult (*init)(unsigned) = nullptr;
    CUresult (*retain)(CUcontext*, CUdevice) = nullptr;
    CUresult (*set_current)(CUcontext) = nullptr;
    CUresult (*get_current)(CUcontext*) = nullptr;
    CUresult (*version)(int*) = nullptr;
    CUresult (*library_load)(CUlibrary*, const void*, int*, void**, unsigned, int*, void**, unsigned) = nullptr;
    CUresult (*library_kernel)(CUkernel*, CUlibrary, const char*) = nullptr;
    CUresult (*launch)(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream,
                       void**, void**) = nullptr;
    CUresult (*launch_per_thread)(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                                  CUstream, void**, void**) = nullptr;
    CUresult (*launch_ex)(const CUlaunchConfig*, CUfunction, void**, void**) = nullptr;
    CUresult (*launch_cooperative)(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                                   CUstream, void**) = nullptr;

private:
    using AddressOf = CUresult (*)(const char*, void**, int, cuuint64_t, CUdriverProcAddressQueryResult*);
    AddressOf address_of_ = nullptr;
};

inline const DriverTable& driver_table() {
    static const DriverTable* const once = new DriverTable;
    return *once;
}

}  // namespace tierline::fakelib
