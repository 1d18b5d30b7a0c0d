// The runtime's functions that nvcc's host code and people call.
#pragma once

#include <cstddef>

#include "cuda.hpp"

extern "C" {
struct dim3 {
    unsigned x, y, z;
};
void** __cudaRegisterFatBinary(void* wrapper);
void __cudaRegisterFunction(void** binary, const char* stub, char* device, const char* name, int limit, void*, void*,
                            void*, void*, int*);
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, std::size_t shared, CUstream stream);
int __cudaPopCallConfiguration(dim3* grid, dim3* block, std::size_t* shared, void* stream);
int __cudaGetKernel(CUkernel* out, const void* stub);
int __cudaLaunchKernel(CUkernel kernel, dim3 grid, dim3 block, void** arguments, std::size_t shared, CUstream stream);
int __cudaLaunchKernel_ptsz(CUkernel kernel, dim3 grid, dim3 block, void** arguments, std::size_t shared,
                            CUstream stream);
int cudaLaunchKernel(const void* stub, dim3 grid, dim3 block, void** arguments, std::size_t shared, CUstream stream);
int cudaMalloc(void** out, std::size_t bytes);
int cudaFree(void* pointer);
int cudaMemcpy(void* to, const void* from, std::size_t bytes, int kind);
int cudaStreamCreateWithFlags(CUstream* out, unsigned flags);
int cudaStreamSynchronize(CUstream stream);
int cudaDeviceSynchronize();
int cudaEventCreate(CUevent* out);
int cudaEventRecord(CUevent event, CUstream stream);
int cudaEventElapsedTime(float* out, CUevent start, CUevent end);
}
