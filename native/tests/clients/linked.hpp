// For clients that link libcuda.so.1: a context, the common kernels, launches.
#pragma once

#include "client.hpp"

namespace client {

inline void start() {
    CUcontext context = nullptr;
    must(cuInit(0), "cuInit");
    must(cuDevicePrimaryCtxRetain(&context, 0), "cuDevicePrimaryCtxRetain");
    must(cuCtxSetCurrent(context), "cuCtxSetCurrent");
}

inline CUmodule load(const char* image = kImage) {
    CUmodule module = nullptr;
    must(cuModuleLoadData(&module, image), "cuModuleLoadData");
    return module;
}

inline CUfunction function(CUmodule module, const char* name) {
    CUfunction out = nullptr;
    must(cuModuleGetFunction(&out, module, name), "cuModuleGetFunction");
    return out;
}

inline CUstream stream(int priority = 0) {
    CUstream out = nullptr;
    must(cuStreamCreateWithPriority(&out, CU_STREAM_NON_BLOCKING, priority), "cuStreamCreateWithPriority");
    return out;
}

inline CUresult launch(CUfunction kernel, CUstream where, int blocks = 264, int value = 0) {
    CUdeviceptr pointer = 0x1000;
    void* arguments[] = {&pointer, &value};
    return cuLaunchKernel(kernel, static_cast<unsigned>(blocks), 1, 1, 256, 1, 1, 0, where, arguments, nullptr);
}

}  // namespace client
