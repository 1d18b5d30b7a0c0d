// Kernels that the fake cuBLAS and cuDNN launch: a tiled matrix product for every shape, work per block from its depth.
#pragma once

#include <algorithm>
#include <cstdio>
#include <map>
#include <mutex>
#include <string>
#include <tuple>

#include "driver_table.hpp"

namespace tierline::fakelib {

// Element sizes of the library_types.h numbers; 4 for those not listed.
inline int element_bytes(int data_type) {
    switch (data_type) {
        case 1: return 8;  // CUDA_R_64F
        case 2:
        case 14: return 2;  // CUDA_R_16F, CUDA_R_16BF
        case 3:
        case 8:
        case 28:
        case 29: return 1;  // 8-bit integers and floats
        default: return 4;
    }
}

// Launches C[m,n] += A[m,k] B[k,n], `batch` times, in the stream. 0, or what the driver says.
inline int launch_product(const char* family, std::int64_t m, std::int64_t n, std::int64_t k, std::int64_t batch,
                          int bytes, CUstream stream, const void* a, const void* b, void* c) {
    const DriverTable& d = driver_table();
    if (const CUresult ready = d.enter(); ready != CUDA_SUCCESS) return ready;
    if (m <= 0 || n <= 0 || k <= 0 || batch <= 0) return CUDA_SUCCESS;
    const bool tensor = bytes <= 2;
    const std::int64_t tile = std::min(m, n) >= 128 ? 128 : 64;
    const std::string name =
        std::string(family) + (tensor ? "_tensorop_" : "_simt_") + std::to_string(tile) + "x" + std::to_string(tile);

    static std::mutex mutex;
    static std::map<std::tuple<std::string, std::int64_t, int>, CUkernel> known;
    CUkernel kernel = nullptr;
    {
        const std::lock_guard<std::mutex> lock(mutex);
        CUkernel& place = known[{name, k, bytes}];
        if (place == nullptr) {
            char image[512];
            std::snprintf(
                image, sizeof image,
                "FAKECUDA 1\nkernel %s block=256 regs=128 unit=%s flops=%.17g bytes=%.17g l2_hit=0.7 efficiency=%s "
                "saturating=256 dynamic_smem=98304 params=8,8,8,4,4,4\n",
                name.c_str(), tensor ? "tensor" : "fp32", 2.0 * static_cast<double>(tile * tile * k),
                static_cast<double>((2 * tile * k + tile * tile) * bytes), tensor ? "0.75" : "0.85");
            CUlibrary library = nullptr;
            CUresult result = d.library_load(&library, image, nullptr, nullptr, 0, nullptr, nullptr, 0);
            if (result == CUDA_SUCCESS) result = d.library_kernel(&place, library, name.c_str());
            if (result != CUDA_SUCCESS) return result;
        }
        kernel = place;
    }
    int rows = static_cast<int>(m);
    int columns = static_cast<int>(n);
    int depth = static_cast<int>(k);
    void* arguments[] = {&a, &b, &c, &rows, &columns, &depth};
    return d.launch(reinterpret_cast<CUfunction>(kernel), static_cast<unsigned>((m + tile - 1) / tile),
                    static_cast<unsigned>((n + tile - 1) / tile), static_cast<unsigned>(batch), 256, 1, 1,
                    static_cast<unsigned>(tile * 512), stream, arguments, nullptr);
}

}  // namespace tierline::fakelib
