// For clients that look the driver's functions up at run time: those a launch needs, from whatever finds them.
#pragma once

#include "client.hpp"

namespace client {

struct Found {
    decltype(&cuInit) init = nullptr;
    decltype(&cuDevicePrimaryCtxRetain) retain = nullptr;
    decltype(&cuCtxSetCurrent) set_current = nullptr;
    decltype(&cuModuleLoadData) load = nullptr;
    decltype(&cuModuleGetFunction) function = nullptr;
    decltype(&cuStreamCreate) stream = nullptr;
    decltype(&cuStreamSynchronize) synchronize = nullptr;
    decltype(&cuLaunchKernel) launch = nullptr;

    // `look_up(name)` gives an address.
    template <class LookUp>
    explicit Found(LookUp&& look_up) {
        take(init, look_up("cuInit"));
        take(retain, look_up("cuDevicePrimaryCtxRetain"));
        take(set_current, look_up("cuCtxSetCurrent"));
        take(load, look_up("cuModuleLoadData"));
        take(function, look_up("cuModuleGetFunction"));
        take(stream, look_up("cuStreamCreate"));
        take(synchronize, look_up("cuStreamSynchronize"));
        take(launch, look_up("cuLaunchKernel"));
    }

    // `count` launches of a kernel in a stream of their own, or in the default stream.
    void run(int count, bool own_stream = true) const {
        CUcontext context = nullptr;
        must(init(0), "cuInit");
        must(retain(&context, 0), "cuDevicePrimaryCtxRetain");
        must(set_current(context), "cuCtxSetCurrent");
        CUmodule module = nullptr;
        CUfunction kernel = nullptr;
        CUstream where = nullptr;
        must(load(&module, kImage), "cuModuleLoadData");
        must(function(&kernel, module, "compute_kernel"), "cuModuleGetFunction");
        if (own_stream) must(stream(&where, CU_STREAM_NON_BLOCKING), "cuStreamCreate");
        for (int i = 0; i < count; ++i) {
            CUdeviceptr pointer = 0x1000;
            void* arguments[] = {&pointer, &i};
            must(launch(kernel, 264, 1, 1, 256, 1, 1, 0, where, arguments, nullptr), "cuLaunchKernel");
        }
        must(synchronize(where), "cuStreamSynchronize");
    }

private:
    template <class Function>
    static void take(Function& out, void* address) {
        if (address == nullptr) fail("a function of the driver was not found", 0);
        std::memcpy(&out, &address, sizeof address);
    }
};

inline void* open_driver() {
    void* const library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) fail("dlopen of libcuda.so.1", 0);
    return library;
}

}  // namespace client
