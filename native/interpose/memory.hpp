// Device memory that each client holds. The cap itself is kept by the region; here stands what to give back when a
// pointer or a handle is freed.
#pragma once

#include "abi/cuda.hpp"
#include "streams.hpp"

#include <map>
#include <mutex>
#include <unordered_map>

namespace tierline::interpose {

class Memory {
public:
    void allocated(CUdeviceptr pointer, Client* client, std::int64_t bytes);
    struct Held {
        Client* client = nullptr;
        std::int64_t bytes = 0;
    };
    // What the pointer held; nothing when it is not known.
    Held freed(CUdeviceptr pointer);

    // Physical memory is held until its handle was released as often as it was retained and all its mappings are gone.
    void created(CUmemGenericAllocationHandle handle, Client* client, std::int64_t bytes);
    void retained(CUmemGenericAllocationHandle handle);
    Held released(CUmemGenericAllocationHandle handle);
    void mapped(CUdeviceptr pointer, std::size_t bytes, CUmemGenericAllocationHandle handle);
    std::vector<Held> unmapped(CUdeviceptr pointer, std::size_t bytes);

private:
    struct Physical {
        Held held;
        int references = 1;
        int mappings = 0;
    };
    Held drop_if_unused(CUmemGenericAllocationHandle handle);

    std::mutex mutex_;
    std::unordered_map<CUdeviceptr, Held> pointers_;
    std::unordered_map<CUmemGenericAllocationHandle, Physical> physical_;
    std::map<CUdeviceptr, CUmemGenericAllocationHandle> mappings_;
};

}  // namespace tierline::interpose
