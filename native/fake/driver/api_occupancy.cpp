// How many blocks of a kernel an SM holds.
#include <algorithm>

#include "driver.hpp"

using namespace tierline::fakecuda;

namespace {

std::int32_t blocks_per_sm(const Function& function, int threads, std::size_t dynamic) {
    KernelSpec shape = function.spec;
    shape.block[0] = static_cast<std::uint32_t>(threads);
    shape.block[1] = shape.block[2] = 1;
    shape.dynamic_shared_bytes = static_cast<std::int32_t>(dynamic);
    return occupancy(spec(), shape);
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

static CUresult max_blocks(Entry entry, int* out, CUfunction handle, int threads, std::size_t dynamic) {
    return call(entry, Need::context, [&](Session&) -> CUresult {
        const Function* function = function_of(handle);  // a CUkernel is allowed here
        if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (out == nullptr || threads <= 0) return CUDA_ERROR_INVALID_VALUE;
        *out = threads <= spec().max_threads_per_block ? blocks_per_sm(*function, threads, dynamic) : 0;
        return CUDA_SUCCESS;
    });
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* out, CUfunction function, int threads, std::size_t dynamic) {
    return max_blocks(Entry::cuOccupancyMaxActiveBlocksPerMultiprocessor, out, function, threads, dynamic);
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* out, CUfunction function, int threads,
                                                              std::size_t dynamic, unsigned int) {
    return max_blocks(Entry::cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags, out, function, threads, dynamic);
}

CUresult cuOccupancyMaxActiveClusters(int* out, CUfunction handle, const CUlaunchConfig* launch) {
    return call(Entry::cuOccupancyMaxActiveClusters, Need::context, [&](Session&) -> CUresult {
        const Function* function = function_of(handle);
        if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (out == nullptr || launch == nullptr) return CUDA_ERROR_INVALID_VALUE;
        std::uint32_t cluster = 1;
        for (unsigned i = 0; i < launch->numAttrs; ++i) {
            const CUlaunchAttribute& attribute = launch->attrs[i];
            if (attribute.id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) {
                cluster = attribute.value.clusterDim.x * attribute.value.clusterDim.y * attribute.value.clusterDim.z;
            }
        }
        const int threads = static_cast<int>(launch->blockDimX * launch->blockDimY * launch->blockDimZ);
        if (cluster == 0 || threads <= 0) return CUDA_ERROR_INVALID_VALUE;
        *out = blocks_per_sm(*function, threads, launch->sharedMemBytes) * spec().sms / static_cast<int>(cluster);
        return CUDA_SUCCESS;
    });
}

CUresult cuOccupancyMaxPotentialBlockSize(int* grid, int* block, CUfunction handle, std::size_t (*shared_of)(int),
                                          std::size_t dynamic, int limit) {
    return call(Entry::cuOccupancyMaxPotentialBlockSize, Need::context, [&](Session&) -> CUresult {
        const Function* function = function_of(handle);
        if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        const int most = std::min({limit > 0 ? limit : 1024, function->max_threads, spec().max_threads_per_block});
        int best = 0;
        for (int threads = most / 32 * 32; threads >= 32; threads -= 32) {
            const int blocks = blocks_per_sm(*function, threads, shared_of != nullptr ? shared_of(threads) : dynamic);
            if (blocks * threads <= best) continue;
            best = blocks * threads;
            *block = threads;
            *grid = blocks * spec().sms;
        }
        return best > 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    });
}

CUresult cuOccupancyAvailableDynamicSMemPerBlock(std::size_t* out, CUfunction handle, int blocks, int threads) {
    return call(Entry::cuOccupancyAvailableDynamicSMemPerBlock, Need::context, [&](Session&) -> CUresult {
        const Function* function = function_of(handle);
        if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (out == nullptr || blocks <= 0 || threads <= 0) return CUDA_ERROR_INVALID_VALUE;
        const int each = spec().shared_bytes_per_sm / blocks - 1024 - function->spec.static_shared_bytes;
        *out = static_cast<std::size_t>(std::max(0, std::min(each, spec().shared_bytes_per_block)));
        return CUDA_SUCCESS;
    });
}

}  // extern "C"
#pragma GCC visibility pop
