// Virtual memory management: address ranges, physical memory, and which lies where.
#include <sys/mman.h>

#include <algorithm>

#include "driver.hpp"

using namespace tierline::fakecuda;

namespace {

constexpr std::size_t kGranularity = std::size_t{2} << 20;

CUdeviceptr address_of(const void* pointer) { return reinterpret_cast<CUdeviceptr>(pointer); }
void* pointer_of(CUdeviceptr address) { return reinterpret_cast<void*>(static_cast<std::uintptr_t>(address)); }

void drop(PhysicalMemory& memory) {
    if (--memory.references > 0) return;
    driver().host.change_used(-static_cast<std::int64_t>(memory.bytes));
    memory.tag = Tag::dead;
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

CUresult cuMemCreate(CUmemGenericAllocationHandle* out, std::size_t bytes, const CUmemAllocationProp* properties,
                     unsigned long long flags) {
    return call(Entry::cuMemCreate, Need::context, [&](Session&) -> CUresult {
        if (out == nullptr || properties == nullptr || flags != 0 || bytes == 0 || bytes % kGranularity != 0) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        Driver& d = driver();
        d.host.reap();
        const auto total = static_cast<std::uint64_t>(d.host.device().spec().memory_bytes);
        if (bytes > total || d.host.used_bytes() > total - bytes) return CUDA_ERROR_OUT_OF_MEMORY;
        auto* memory = new PhysicalMemory;
        memory->bytes = bytes;
        d.host.change_used(static_cast<std::int64_t>(bytes));
        *out = reinterpret_cast<CUmemGenericAllocationHandle>(memory);
        if (log_enabled()) call_detail().number("bytes", static_cast<std::int64_t>(bytes));
        return CUDA_SUCCESS;
    });
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
    return call(Entry::cuMemRelease, Need::device, [&](Session&) -> CUresult {
        auto* memory = to<PhysicalMemory>(pointer_of(handle), Tag::allocation);
        if (memory == nullptr) return CUDA_ERROR_INVALID_VALUE;
        if (log_enabled()) call_detail().number("bytes", static_cast<std::int64_t>(memory->bytes));
        drop(*memory);
        return CUDA_SUCCESS;
    });
}

CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle* out, void* pointer) {
    return call(Entry::cuMemRetainAllocationHandle, Need::device, [&](Session&) -> CUresult {
        const auto& all = driver().mappings;
        auto next = all.upper_bound(reinterpret_cast<std::uintptr_t>(pointer));
        if (out == nullptr || next == all.begin()) return CUDA_ERROR_INVALID_VALUE;
        --next;
        if (reinterpret_cast<std::uintptr_t>(pointer) >= next->first + next->second->bytes)
            return CUDA_ERROR_INVALID_VALUE;
        ++next->second->references;
        *out = reinterpret_cast<CUmemGenericAllocationHandle>(next->second);
        return CUDA_SUCCESS;
    });
}

CUresult cuMemGetAllocationGranularity(std::size_t* out, const CUmemAllocationProp* properties, int) {
    return call(Entry::cuMemGetAllocationGranularity, Need::device, [&](Session&) -> CUresult {
        if (out == nullptr || properties == nullptr) return CUDA_ERROR_INVALID_VALUE;
        *out = kGranularity;
        return CUDA_SUCCESS;
    });
}

CUresult cuMemAddressReserve(CUdeviceptr* out, std::size_t bytes, std::size_t, CUdeviceptr, unsigned long long) {
    return call(Entry::cuMemAddressReserve, Need::device, [&](Session&) -> CUresult {
        if (out == nullptr || bytes == 0 || bytes % 4096 != 0) return CUDA_ERROR_INVALID_VALUE;
        void* const place = ::mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (place == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
        Allocation made;
        made.bytes = made.mapped = bytes;
        made.reserved = true;
        driver().allocations[reinterpret_cast<std::uintptr_t>(place)] = made;
        *out = address_of(place);
        return CUDA_SUCCESS;
    });
}

CUresult cuMemAddressFree(CUdeviceptr pointer, std::size_t bytes) {
    return call(Entry::cuMemAddressFree, Need::device, [&](Session&) -> CUresult {
        auto& all = driver().allocations;
        const auto found = all.find(static_cast<std::uintptr_t>(pointer));
        if (found == all.end() || !found->second.reserved || found->second.bytes != bytes)
            return CUDA_ERROR_INVALID_VALUE;
        ::munmap(pointer_of(pointer), bytes);
        all.erase(found);
        return CUDA_SUCCESS;
    });
}

CUresult cuMemMap(CUdeviceptr pointer, std::size_t bytes, std::size_t, CUmemGenericAllocationHandle handle,
                  unsigned long long) {
    return call(Entry::cuMemMap, Need::device, [&](Session&) -> CUresult {
        auto* memory = to<PhysicalMemory>(pointer_of(handle), Tag::allocation);
        if (memory == nullptr || bytes > memory->bytes) return CUDA_ERROR_INVALID_VALUE;
        if (::mprotect(pointer_of(pointer), bytes, PROT_READ | PROT_WRITE) != 0) return CUDA_ERROR_INVALID_VALUE;
        ++memory->references;
        driver().mappings[static_cast<std::uintptr_t>(pointer)] = memory;
        return CUDA_SUCCESS;
    });
}

CUresult cuMemUnmap(CUdeviceptr pointer, std::size_t bytes) {
    return call(Entry::cuMemUnmap, Need::device, [&](Session&) -> CUresult {
        auto& all = driver().mappings;
        auto at = all.lower_bound(static_cast<std::uintptr_t>(pointer));
        if (at == all.end() || at->first != pointer) return CUDA_ERROR_INVALID_VALUE;
        while (at != all.end() && at->first < pointer + bytes) {
            drop(*at->second);
            at = all.erase(at);
        }
        ::mprotect(pointer_of(pointer), bytes, PROT_NONE);
        return CUDA_SUCCESS;
    });
}

CUresult cuMemSetAccess(CUdeviceptr pointer, std::size_t, const void* description, std::size_t count) {
    return call(Entry::cuMemSetAccess, Need::device, [&](Session&) -> CUresult {
        return pointer != 0 && description != nullptr && count > 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    });
}

}  // extern "C"
#pragma GCC visibility pop
