// Allocation and pools. Copies are in api_copy.cpp.
//
// Stream-ordered allocations and frees take effect at the call; their order against the stream's work is not modelled.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "driver.hpp"

using namespace tierline::fakecuda;

namespace {

CUdeviceptr address_of(const void* pointer) { return reinterpret_cast<CUdeviceptr>(pointer); }

CUresult allocate_in_stream(Entry entry, CUdeviceptr* out, std::size_t bytes, Pool* pool, CUstream handle) {
    return call(entry, Need::context, [&](Session&) -> CUresult {
        Stream* stream = find_stream(handle);
        if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
        if (const CUresult result = before_enqueue(*stream); result != CUDA_SUCCESS) return result;
        if (stream->capture != nullptr) capture_node(*stream, CU_GRAPH_NODE_TYPE_MEM_ALLOC);
        return allocate(bytes, pool != nullptr ? pool : driver().current_pool, *out);
    });
}

CUresult free_in_stream(Entry entry, CUdeviceptr pointer, CUstream handle) {
    return call(entry, Need::context, [&](Session&) -> CUresult {
        Stream* stream = find_stream(handle);
        if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (const CUresult result = before_enqueue(*stream); result != CUDA_SUCCESS) return result;
        if (stream->capture != nullptr) {
            capture_node(*stream, CU_GRAPH_NODE_TYPE_MEM_FREE);
            return CUDA_SUCCESS;  // the graph's launches may use it again
        }
        return release(pointer);
    });
}

CUresult allocate_host(Entry entry, void** out, std::size_t bytes) {
    return call(entry, Need::context, [&](Session&) -> CUresult {
        if (out == nullptr || bytes == 0) return CUDA_ERROR_INVALID_VALUE;
        if (const CUresult result = unsafe_call(); result != CUDA_SUCCESS) return result;
        Allocation made;
        made.bytes = bytes;
        made.mapped = (bytes + 4095) / 4096 * 4096;
        made.host = true;
        void* const place = ::mmap(nullptr, made.mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (place == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
        driver().allocations[reinterpret_cast<std::uintptr_t>(place)] = made;
        *out = place;
        return CUDA_SUCCESS;
    });
}

CUresult pool_result(CUmemoryPool handle, Pool*& pool) {
    pool = to<Pool>(handle, Tag::pool);
    return pool != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

// The attributes 1 to 3 are ints, the others 64 bits.
std::uint64_t* pool_field(Pool& pool, int attribute) {
    switch (attribute) {
        case 4: return &pool.threshold;
        case 5: return &pool.reserved;
        case 6: return &pool.reserved_high;
        case 7: return &pool.used;
        case 8: return &pool.used_high;
        default: return nullptr;
    }
}

CUresult get_pool(Entry entry, CUmemoryPool* out, CUdevice device, bool current) {
    return call(entry, Need::device, [&](Session&) -> CUresult {
        if (device != 0) return CUDA_ERROR_INVALID_DEVICE;
        if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
        *out = from<CUmemoryPool>(current ? driver().current_pool : driver().default_pool);
        return CUDA_SUCCESS;
    });
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

CUresult cuMemGetInfo_v2(std::size_t* free_bytes, std::size_t* total_bytes) {
    return call(Entry::cuMemGetInfo_v2, Need::context, [&](Session&) -> CUresult {
        if (free_bytes == nullptr || total_bytes == nullptr) return CUDA_ERROR_INVALID_VALUE;
        driver().host.reap();
        *total_bytes = static_cast<std::size_t>(driver().host.device().spec().memory_bytes);
        *free_bytes = *total_bytes - std::min(*total_bytes, static_cast<std::size_t>(driver().host.used_bytes()));
        return CUDA_SUCCESS;
    });
}

CUresult cuMemAlloc_v2(CUdeviceptr* out, std::size_t bytes) {
    return call(Entry::cuMemAlloc_v2, Need::context, [&](Session&) -> CUresult {
        if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
        if (const CUresult result = unsafe_call(); result != CUDA_SUCCESS) return result;
        driver().host.reap();
        return allocate(bytes, nullptr, *out);
    });
}

CUresult cuMemAllocManaged(CUdeviceptr* out, std::size_t bytes, unsigned int) {
    return call(Entry::cuMemAllocManaged, Need::context, [&](Session&) -> CUresult {
        if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
        if (const CUresult result = unsafe_call(); result != CUDA_SUCCESS) return result;
        return allocate(bytes, nullptr, *out);
    });
}

CUresult cuMemAllocPitch_v2(CUdeviceptr* out, std::size_t* pitch, std::size_t width, std::size_t height, unsigned int) {
    return call(Entry::cuMemAllocPitch_v2, Need::context, [&](Session&) -> CUresult {
        if (out == nullptr || pitch == nullptr) return CUDA_ERROR_INVALID_VALUE;
        if (const CUresult result = unsafe_call(); result != CUDA_SUCCESS) return result;
        *pitch = (width + 511) / 512 * 512;
        return allocate(*pitch * height, nullptr, *out);
    });
}

CUresult cuMemFree_v2(CUdeviceptr pointer) {
    return call(Entry::cuMemFree_v2, Need::context, [&](Session& session) -> CUresult {
        if (pointer == 0) return CUDA_SUCCESS;
        if (const CUresult result = unsafe_call(); result != CUDA_SUCCESS) return result;
        if (driver().allocations.count(static_cast<std::uintptr_t>(pointer)) == 0) return CUDA_ERROR_INVALID_VALUE;
        // It may be in use: as the real one, wait for everything of the context.
        const ContextId context = current_context()->engine;
        wait_until(session, [&] { return driver().ended || driver().host.device().context_idle(context); });
        return release(pointer);
    });
}

CUresult cuMemGetAddressRange_v2(CUdeviceptr* base, std::size_t* bytes, CUdeviceptr pointer) {
    return call(Entry::cuMemGetAddressRange_v2, Need::context, [&](Session&) -> CUresult {
        const auto& all = driver().allocations;
        auto next = all.upper_bound(static_cast<std::uintptr_t>(pointer));
        if (next == all.begin()) return CUDA_ERROR_NOT_FOUND;
        --next;
        if (pointer >= next->first + next->second.bytes) return CUDA_ERROR_NOT_FOUND;
        if (base != nullptr) *base = next->first;
        if (bytes != nullptr) *bytes = next->second.bytes;
        return CUDA_SUCCESS;
    });
}

CUresult cuMemAllocHost_v2(void** out, std::size_t bytes) {
    return allocate_host(Entry::cuMemAllocHost_v2, out, bytes);
}
CUresult cuMemHostAlloc(void** out, std::size_t bytes, unsigned int) {
    return allocate_host(Entry::cuMemHostAlloc, out, bytes);
}

CUresult cuMemFreeHost(void* pointer) {
    return call(Entry::cuMemFreeHost, Need::context, [&](Session&) -> CUresult {
        auto& all = driver().allocations;
        const auto found = all.find(reinterpret_cast<std::uintptr_t>(pointer));
        if (found == all.end() || !found->second.host) return CUDA_ERROR_INVALID_VALUE;
        ::munmap(pointer, found->second.mapped);
        all.erase(found);
        return CUDA_SUCCESS;
    });
}

CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr* out, void* pointer, unsigned int) {
    return call(Entry::cuMemHostGetDevicePointer_v2, Need::context, [&](Session&) -> CUresult {
        if (out == nullptr || pointer == nullptr) return CUDA_ERROR_INVALID_VALUE;
        *out = address_of(pointer);
        return CUDA_SUCCESS;
    });
}

CUresult cuMemHostRegister_v2(void* pointer, std::size_t bytes, unsigned int) {
    return call(Entry::cuMemHostRegister_v2, Need::context, [&](Session&) -> CUresult {
        return pointer != nullptr && bytes > 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    });
}

CUresult cuMemHostUnregister(void* pointer) {
    return call(Entry::cuMemHostUnregister, Need::context,
                [&](Session&) -> CUresult { return pointer != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE; });
}

CUresult cuPointerGetAttribute(void* data, int attribute, CUdeviceptr pointer) {
    return call(Entry::cuPointerGetAttribute, Need::context, [&](Session&) -> CUresult {
        const auto& all = driver().allocations;
        auto next = all.upper_bound(static_cast<std::uintptr_t>(pointer));
        if (data == nullptr || next == all.begin()) return CUDA_ERROR_INVALID_VALUE;
        --next;
        if (pointer >= next->first + next->second.bytes) return CUDA_ERROR_INVALID_VALUE;
        switch (attribute) {
            case 1: *static_cast<CUcontext*>(data) = from<CUcontext>(current_context()); return CUDA_SUCCESS;
            case 2: *static_cast<unsigned*>(data) = next->second.host ? 1 : 2; return CUDA_SUCCESS;  // memory type
            case 3: *static_cast<CUdeviceptr*>(data) = pointer; return CUDA_SUCCESS;
            case 8: *static_cast<unsigned*>(data) = 0; return CUDA_SUCCESS;  // managed
            case 9: *static_cast<int*>(data) = 0; return CUDA_SUCCESS;       // device ordinal
            default: return CUDA_ERROR_NOT_SUPPORTED;
        }
    });
}

CUresult cuMemAllocAsync(CUdeviceptr* out, std::size_t bytes, CUstream stream) {
    return allocate_in_stream(Entry::cuMemAllocAsync, out, bytes, nullptr, stream);
}
CUresult cuMemAllocAsync_ptsz(CUdeviceptr* out, std::size_t bytes, CUstream stream) {
    return allocate_in_stream(Entry::cuMemAllocAsync_ptsz, out, bytes, nullptr, own_default(stream));
}
CUresult cuMemAllocFromPoolAsync(CUdeviceptr* out, std::size_t bytes, CUmemoryPool pool, CUstream stream) {
    return allocate_in_stream(Entry::cuMemAllocFromPoolAsync, out, bytes, to<Pool>(pool, Tag::pool), stream);
}
CUresult cuMemAllocFromPoolAsync_ptsz(CUdeviceptr* out, std::size_t bytes, CUmemoryPool pool, CUstream stream) {
    return allocate_in_stream(Entry::cuMemAllocFromPoolAsync_ptsz, out, bytes, to<Pool>(pool, Tag::pool),
                              own_default(stream));
}
CUresult cuMemFreeAsync(CUdeviceptr pointer, CUstream stream) {
    return free_in_stream(Entry::cuMemFreeAsync, pointer, stream);
}
CUresult cuMemFreeAsync_ptsz(CUdeviceptr pointer, CUstream stream) {
    return free_in_stream(Entry::cuMemFreeAsync_ptsz, pointer, own_default(stream));
}

CUresult cuMemPoolCreate(CUmemoryPool* out, const void* properties) {
    return call(Entry::cuMemPoolCreate, Need::device, [&](Session&) -> CUresult {
        if (out == nullptr || properties == nullptr) return CUDA_ERROR_INVALID_VALUE;
        *out = from<CUmemoryPool>(new Pool);
        return CUDA_SUCCESS;
    });
}

CUresult cuMemPoolDestroy(CUmemoryPool handle) {
    return call(Entry::cuMemPoolDestroy, Need::device, [&](Session&) -> CUresult {
        Pool* pool = nullptr;
        if (const CUresult result = pool_result(handle, pool); result != CUDA_SUCCESS) return result;
        if (pool == driver().default_pool) return CUDA_ERROR_INVALID_VALUE;
        if (pool == driver().current_pool) driver().current_pool = driver().default_pool;
        pool->tag = Tag::dead;
        return CUDA_SUCCESS;
    });
}

CUresult cuMemPoolSetAttribute(CUmemoryPool handle, int attribute, void* value) {
    return call(Entry::cuMemPoolSetAttribute, Need::device, [&](Session&) -> CUresult {
        Pool* pool = nullptr;
        if (const CUresult result = pool_result(handle, pool); result != CUDA_SUCCESS) return result;
        if (value == nullptr || attribute < 1 || attribute > 8) return CUDA_ERROR_INVALID_VALUE;
        if (attribute == 4) pool->threshold = *static_cast<const std::uint64_t*>(value);
        if (attribute == 6) pool->reserved_high = pool->reserved;  // only a reset is allowed
        if (attribute == 8) pool->used_high = pool->used;
        return CUDA_SUCCESS;
    });
}

CUresult cuMemPoolGetAttribute(CUmemoryPool handle, int attribute, void* value) {
    return call(Entry::cuMemPoolGetAttribute, Need::device, [&](Session&) -> CUresult {
        Pool* pool = nullptr;
        if (const CUresult result = pool_result(handle, pool); result != CUDA_SUCCESS) return result;
        if (value == nullptr || attribute < 1 || attribute > 8) return CUDA_ERROR_INVALID_VALUE;
        if (const std::uint64_t* field = pool_field(*pool, attribute)) {
            *static_cast<std::uint64_t*>(value) = *field;
        } else {
            *static_cast<int*>(value) = 1;
        }
        return CUDA_SUCCESS;
    });
}

CUresult cuMemPoolTrimTo(CUmemoryPool handle, std::size_t keep) {
    return call(Entry::cuMemPoolTrimTo, Need::device, [&](Session&) -> CUresult {
        Pool* pool = nullptr;
        if (const CUresult result = pool_result(handle, pool); result != CUDA_SUCCESS) return result;
        pool->reserved = std::max<std::uint64_t>(pool->used, std::min<std::uint64_t>(pool->reserved, keep));
        return CUDA_SUCCESS;
    });
}

CUresult cuDeviceGetDefaultMemPool(CUmemoryPool* out, CUdevice device) {
    return get_pool(Entry::cuDeviceGetDefaultMemPool, out, device, false);
}
CUresult cuDeviceGetMemPool(CUmemoryPool* out, CUdevice device) {
    return get_pool(Entry::cuDeviceGetMemPool, out, device, true);
}

CUresult cuDeviceSetMemPool(CUdevice device, CUmemoryPool handle) {
    return call(Entry::cuDeviceSetMemPool, Need::device, [&](Session&) -> CUresult {
        Pool* pool = nullptr;
        if (const CUresult result = pool_result(handle, pool); result != CUDA_SUCCESS) return result;
        if (device != 0) return CUDA_ERROR_INVALID_DEVICE;
        driver().current_pool = pool;
        return CUDA_SUCCESS;
    });
}

}  // extern "C"
#pragma GCC visibility pop
