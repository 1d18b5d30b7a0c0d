#include "memory.hpp"

namespace tierline::interpose {

void Memory::allocated(CUdeviceptr pointer, Client* client, std::int64_t bytes) {
    const std::lock_guard<std::mutex> guard(mutex_);
    pointers_[pointer] = {client, bytes};
}

Memory::Held Memory::freed(CUdeviceptr pointer) {
    const std::lock_guard<std::mutex> guard(mutex_);
    const auto found = pointers_.find(pointer);
    if (found == pointers_.end()) return {};
    const Held held = found->second;
    pointers_.erase(found);
    return held;
}

void Memory::created(CUmemGenericAllocationHandle handle, Client* client, std::int64_t bytes) {
    const std::lock_guard<std::mutex> guard(mutex_);
    Physical& physical = physical_[handle];
    physical = {};
    physical.held = {client, bytes};
}

void Memory::retained(CUmemGenericAllocationHandle handle) {
    const std::lock_guard<std::mutex> guard(mutex_);
    const auto found = physical_.find(handle);
    if (found != physical_.end()) ++found->second.references;
}

Memory::Held Memory::drop_if_unused(CUmemGenericAllocationHandle handle) {
    const auto found = physical_.find(handle);
    if (found == physical_.end() || found->second.references > 0 || found->second.mappings > 0) return {};
    const Held held = found->second.held;
    physical_.erase(found);
    return held;
}

Memory::Held Memory::released(CUmemGenericAllocationHandle handle) {
    const std::lock_guard<std::mutex> guard(mutex_);
    const auto found = physical_.find(handle);
    if (found == physical_.end()) return {};
    --found->second.references;
    return drop_if_unused(handle);
}

void Memory::mapped(CUdeviceptr pointer, std::size_t, CUmemGenericAllocationHandle handle) {
    const std::lock_guard<std::mutex> guard(mutex_);
    const auto found = physical_.find(handle);
    if (found == physical_.end()) return;
    ++found->second.mappings;
    mappings_[pointer] = handle;
}

std::vector<Memory::Held> Memory::unmapped(CUdeviceptr pointer, std::size_t bytes) {
    const std::lock_guard<std::mutex> guard(mutex_);
    std::vector<Held> freed;
    for (auto at = mappings_.lower_bound(pointer); at != mappings_.end() && at->first < pointer + bytes;) {
        const CUmemGenericAllocationHandle handle = at->second;
        at = mappings_.erase(at);
        const auto found = physical_.find(handle);
        if (found == physical_.end()) continue;
        --found->second.mappings;
        const Held held = drop_if_unused(handle);
        if (held.client != nullptr) freed.push_back(held);
    }
    return freed;
}

}  // namespace tierline::interpose
