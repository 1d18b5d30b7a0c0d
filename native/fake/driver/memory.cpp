// Device memory: addresses that are real in this process, so that copies move data, and a count against the device's
// size.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "driver.hpp"

namespace tierline::fakecuda {
namespace {

// The allocation that holds the address; null when it is plain host memory.
const Allocation* find(const void* pointer) {
    const auto& all = driver().allocations;
    const auto address = reinterpret_cast<std::uintptr_t>(pointer);
    auto next = all.upper_bound(address);
    if (next == all.begin()) return nullptr;
    --next;
    return address < next->first + next->second.mapped ? &next->second : nullptr;
}

}  // namespace

CUresult allocate(std::size_t bytes, Pool* pool, CUdeviceptr& out) {
    Driver& d = driver();
    if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    const auto total = static_cast<std::uint64_t>(d.host.device().spec().memory_bytes);
    const std::uint64_t used = d.host.used_bytes();
    if (bytes > total || used > total - bytes) return CUDA_ERROR_OUT_OF_MEMORY;
    // Costs no memory of the host until it is touched.
    const std::size_t mapped = paged(bytes);
    void* const place =
        ::mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (place == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
    Allocation made;
    made.bytes = bytes;
    made.mapped = mapped;
    made.pool = pool;
    d.allocations[reinterpret_cast<std::uintptr_t>(place)] = made;
    d.host.change_used(static_cast<std::int64_t>(bytes));
    if (pool != nullptr) {
        pool->used += bytes;
        pool->used_high = std::max(pool->used_high, pool->used);
        pool->reserved = std::max(pool->reserved, pool->used);
        pool->reserved_high = std::max(pool->reserved_high, pool->reserved);
    }
    out = reinterpret_cast<CUdeviceptr>(place);
    if (log_enabled()) call_detail().number("bytes", static_cast<std::int64_t>(bytes));
    return CUDA_SUCCESS;
}

CUresult release(CUdeviceptr pointer) {
    Driver& d = driver();
    const auto found = d.allocations.find(static_cast<std::uintptr_t>(pointer));
    if (found == d.allocations.end() || found->second.host || found->second.reserved) return CUDA_ERROR_INVALID_VALUE;
    const Allocation gone = found->second;
    if (gone.pool != nullptr) {
        gone.pool->used -= gone.bytes;
        // Above its threshold a pool gives memory back.
        gone.pool->reserved = std::max(gone.pool->used, std::min(gone.pool->reserved, gone.pool->threshold));
    }
    ::munmap(reinterpret_cast<void*>(found->first), gone.mapped);
    d.allocations.erase(found);
    d.host.change_used(-static_cast<std::int64_t>(gone.bytes));
    if (log_enabled()) call_detail().number("bytes", static_cast<std::int64_t>(gone.bytes));
    return CUDA_SUCCESS;
}

void move_bytes(void* destination, const void* source, std::size_t bytes) {
    if (bytes > 0) std::memmove(destination, source, bytes);
}

Direction direction_of(const void* destination, const void* source) {
    const Allocation* to = find(destination);
    const Allocation* from_ = find(source);
    const bool to_device = to != nullptr && !to->host;
    const bool from_device = from_ != nullptr && !from_->host;
    if (to_device && from_device) return Direction::device_to_device;
    return to_device ? Direction::host_to_device : Direction::device_to_host;
}

}  // namespace tierline::fakecuda
