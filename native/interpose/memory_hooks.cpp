// Allocations are counted against their client's cap before the driver is asked, so that a client runs out of its own
// memory and never of its neighbour's. None of these waits for the gate: freeing may synchronise inside the driver.
#include "guarded.hpp"
#include "hooks.hpp"
#include "session.hpp"

#include <algorithm>

namespace tierline::interpose {

namespace {

// A reservation for one allocation; given back unless it is kept.
class Reservation {
public:
    explicit Reservation(std::size_t bytes) : bytes_(static_cast<std::int64_t>(bytes)) {
        session_ = session();
        if (session_ == nullptr) return;
        guarded([&] {
            const Context* context = session_->streams.context(current_context());
            // Memory of another device is not this region's.
            if (context == nullptr || context->managed) client_ = session_->client_of_thread();
        });
        if (client_ == nullptr) return;
        if (!session_->arbiter.reserve_memory(client_->slot, bytes_)) {
            refused_ = true;
            return;
        }
        client_->memory_bytes.fetch_add(bytes_, std::memory_order_relaxed);
        held_ = true;
    }
    ~Reservation() {
        if (!held_) return;
        client_->memory_bytes.fetch_sub(bytes_, std::memory_order_relaxed);
        session_->arbiter.release_memory(client_->slot, bytes_);
    }
    Reservation(const Reservation&) = delete;
    Reservation& operator=(const Reservation&) = delete;

    bool refused() const { return refused_; }
    void keep(CUdeviceptr pointer) {
        if (held_ && guarded([&] { session_->memory.allocated(pointer, client_, bytes_); })) held_ = false;
    }
    void keep_handle(CUmemGenericAllocationHandle handle) {
        if (held_ && guarded([&] { session_->memory.created(handle, client_, bytes_); })) held_ = false;
    }
    // The driver took more than was asked for (pitch): counted without a second look at the cap.
    void grow(std::int64_t bytes) {
        if (!held_ || bytes <= bytes_) return;
        session_->arbiter.release_memory(client_->slot, bytes_ - bytes);
        client_->memory_bytes.fetch_add(bytes - bytes_, std::memory_order_relaxed);
        bytes_ = bytes;
    }

private:
    Session* session_ = nullptr;
    Client* client_ = nullptr;
    std::int64_t bytes_;
    bool held_ = false;
    bool refused_ = false;
};

template <class Real>
CUresult allocate(CUdeviceptr* pointer, std::size_t bytes, Real&& real) {
    Reservation reservation(bytes);
    if (reservation.refused()) return CUDA_ERROR_OUT_OF_MEMORY;
    const CUresult result = real();
    if (result == CUDA_SUCCESS && pointer != nullptr) reservation.keep(*pointer);
    return result;
}

void release(Session& session, const Memory::Held& held) {
    if (held.client == nullptr) return;
    held.client->memory_bytes.fetch_sub(held.bytes, std::memory_order_relaxed);
    if (!held.client->ended.load()) session.arbiter.release_memory(held.client->slot, held.bytes);
}

// The pointer leaves the books before the driver frees it: afterwards another thread may get the same address.
template <class Real>
CUresult free_pointer(CUdeviceptr pointer, Real&& real) {
    Session* session = session_if_any();
    Memory::Held held;
    if (session != nullptr) guarded([&] { held = session->memory.freed(pointer); });
    const CUresult result = real();
    if (session == nullptr || held.client == nullptr) return result;
    if (result == CUDA_SUCCESS) {
        release(*session, held);
    } else {
        guarded([&] { session->memory.allocated(pointer, held.client, held.bytes); });
    }
    return result;
}

}  // namespace

CUresult mem_alloc(Site<Fn_cuMemAlloc_v2> site, CUdeviceptr* pointer, size_t bytes) {
    return allocate(pointer, bytes, [&] { return site.real(pointer, bytes); });
}

CUresult mem_alloc_pitch(Site<Fn_cuMemAllocPitch_v2> site, CUdeviceptr* pointer, size_t* pitch, size_t width,
                         size_t height, unsigned element) {
    Reservation reservation(width * height);
    if (reservation.refused()) return CUDA_ERROR_OUT_OF_MEMORY;
    const CUresult result = site.real(pointer, pitch, width, height, element);
    if (result == CUDA_SUCCESS && pointer != nullptr) {
        if (pitch != nullptr) reservation.grow(static_cast<std::int64_t>(*pitch * height));
        reservation.keep(*pointer);
    }
    return result;
}

CUresult mem_alloc_managed(Site<Fn_cuMemAllocManaged> site, CUdeviceptr* pointer, size_t bytes, unsigned flags) {
    return allocate(pointer, bytes, [&] { return site.real(pointer, bytes, flags); });
}

CUresult mem_alloc_async(Site<Fn_cuMemAllocAsync> site, CUdeviceptr* pointer, size_t bytes, CUstream stream) {
    return allocate(pointer, bytes, [&] { return site.real(pointer, bytes, stream); });
}

CUresult mem_alloc_from_pool(Site<Fn_cuMemAllocFromPoolAsync> site, CUdeviceptr* pointer, size_t bytes,
                             CUmemoryPool pool, CUstream stream) {
    return allocate(pointer, bytes, [&] { return site.real(pointer, bytes, pool, stream); });
}

CUresult mem_free(Site<Fn_cuMemFree_v2> site, CUdeviceptr pointer) {
    return free_pointer(pointer, [&] { return site.real(pointer); });
}

CUresult mem_free_async(Site<Fn_cuMemFreeAsync> site, CUdeviceptr pointer, CUstream stream) {
    return free_pointer(pointer, [&] { return site.real(pointer, stream); });
}

CUresult mem_create(Site<Fn_cuMemCreate> site, CUmemGenericAllocationHandle* handle, size_t bytes,
                    const CUmemAllocationProp* prop, unsigned long long flags) {
    const bool on_device = prop == nullptr || prop->location.type == CU_MEM_LOCATION_TYPE_DEVICE;
    Reservation reservation(on_device ? bytes : 0);
    if (reservation.refused()) return CUDA_ERROR_OUT_OF_MEMORY;
    const CUresult result = site.real(handle, bytes, prop, flags);
    if (result == CUDA_SUCCESS && handle != nullptr) reservation.keep_handle(*handle);
    return result;
}

CUresult mem_release(Site<Fn_cuMemRelease> site, CUmemGenericAllocationHandle handle) {
    Session* session = session_if_any();
    Memory::Held held;
    if (session != nullptr) guarded([&] { held = session->memory.released(handle); });
    const CUresult result = site.real(handle);
    if (session == nullptr) return result;
    if (result == CUDA_SUCCESS) {
        release(*session, held);
    } else if (held.client != nullptr) {
        guarded([&] { session->memory.created(handle, held.client, held.bytes); });
    } else {
        guarded([&] { session->memory.retained(handle); });
    }
    return result;
}

CUresult mem_map(Site<Fn_cuMemMap> site, CUdeviceptr pointer, size_t bytes, size_t offset,
                 CUmemGenericAllocationHandle handle, unsigned long long flags) {
    const CUresult result = site.real(pointer, bytes, offset, handle, flags);
    Session* session = session_if_any();
    if (result == CUDA_SUCCESS && session != nullptr) guarded([&] { session->memory.mapped(pointer, bytes, handle); });
    return result;
}

CUresult mem_unmap(Site<Fn_cuMemUnmap> site, CUdeviceptr pointer, size_t bytes) {
    const CUresult result = site.real(pointer, bytes);
    Session* session = session_if_any();
    if (result == CUDA_SUCCESS && session != nullptr) {
        guarded([&] {
            for (const Memory::Held& held : session->memory.unmapped(pointer, bytes)) release(*session, held);
        });
    }
    return result;
}

CUresult mem_retain(Site<Fn_cuMemRetainAllocationHandle> site, CUmemGenericAllocationHandle* handle, void* pointer) {
    const CUresult result = site.real(handle, pointer);
    Session* session = session_if_any();
    if (result == CUDA_SUCCESS && session != nullptr && handle != nullptr) {
        guarded([&] { session->memory.retained(*handle); });
    }
    return result;
}

CUresult mem_get_info(Site<Fn_cuMemGetInfo_v2> site, size_t* free, size_t* total) {
    const CUresult result = site.real(free, total);
    Session* owner = result == CUDA_SUCCESS ? session() : nullptr;
    if (owner == nullptr) return result;
    guarded([&] {
        const Client& client = *owner->client_of_thread();
        if (client.memory_cap_bytes <= 0) return;
        const std::int64_t used = client.memory_bytes.load(std::memory_order_relaxed);
        const std::int64_t left = std::max<std::int64_t>(0, client.memory_cap_bytes - used);
        if (total != nullptr) *total = std::min(*total, static_cast<size_t>(client.memory_cap_bytes));
        if (free != nullptr) *free = std::min(*free, static_cast<size_t>(left));
    });
    return result;
}

}  // namespace tierline::interpose
