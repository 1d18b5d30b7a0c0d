// Initialisation, errors, devices.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "contexts.hpp"

using namespace tierline::fake;
using namespace tierline::fakecuda;

namespace {

struct ErrorText {
    int code;
    const char* name;
    const char* text;
};

constexpr ErrorText kErrors[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {4, "CUDA_ERROR_DEINITIALIZED", "driver shutting down"},
    {34, "CUDA_ERROR_STUB_LIBRARY", "CUDA driver is a stub library"},
    {46, "CUDA_ERROR_DEVICE_UNAVAILABLE", "CUDA-capable device(s) is/are busy or unavailable"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {200, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {301, "CUDA_ERROR_FILE_NOT_FOUND", "file not found"},
    {304, "CUDA_ERROR_OPERATING_SYSTEM", "OS call failed or operation not supported on this OS"},
    {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {401, "CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed in the present state"},
    {500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {600, "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {702, "CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {720, "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE", "too many blocks in cooperative launch"},
    {800, "CUDA_ERROR_NOT_PERMITTED", "operation not permitted"},
    {801, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
    {902, "CUDA_ERROR_STREAM_CAPTURE_MERGE", "operation would result in a merge of separate capture sequences"},
    {903, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not ended in the same stream as it began"},
    {904, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"},
    {905, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "dependency created on uncaptured work in another stream"},
    {906, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {907, "CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream"},
    {908, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD",
     "attempt to terminate a thread-local capture sequence from another thread"},
    {912, "CUDA_ERROR_INVALID_CLUSTER_SIZE", "invalid cluster size"},
    {914, "CUDA_ERROR_INVALID_RESOURCE_TYPE", "the resource type is not valid for this operation"},
    {915, "CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION", "the resources given are insufficient or not applicable"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

const ErrorText* find_error(int code) {
    for (const ErrorText& error : kErrors) {
        if (error.code == code) return &error;
    }
    return nullptr;
}

int attribute(int which) {
    const DeviceSpec& d = spec();
    switch (which) {
        case 1: return d.max_threads_per_block;
        case 2:
        case 3: return d.max_threads_per_block;  // block dimensions x and y
        case 4: return 64;                       // block dimension z
        case 5: return 2147483647;               // grid dimension x
        case 6:
        case 7: return 65535;                // grid dimensions y and z
        case 8: return 48 * 1024;            // shared memory of a block without opting in
        case 9: return 65536;                // constant memory
        case 10: return 32;                  // warp
        case 12: return d.registers_per_sm;  // registers of a block
        case 13: return static_cast<int>(d.fp32_flops_per_s / (static_cast<double>(d.sms) * 128.0 * 2.0) / 1e3);  // kHz
        case 16: return d.sms;
        case 18: return 0;  // integrated
        case 19: return 1;  // maps host memory
        case 20: return 0;  // compute mode
        case 31: return 1;  // concurrent kernels
        case 33: return 1;  // PCI bus
        case 34:
        case 50: return 0;                                                           // PCI device, domain
        case 36: return static_cast<int>(d.dram_bytes_per_s / (2.0 * 768.0) / 1e3);  // kHz, with the width below
        case 37: return 6144;                                                        // memory bus, bits
        case 38: return static_cast<int>(d.l2_bytes);
        case 39: return d.threads_per_sm;
        case 40: return 2;  // copy engines
        case 41: return 1;  // unified addressing
        case 75: return d.compute_major;
        case 76: return d.compute_minor;
        case 78: return 1;  // stream priorities
        case 81: return d.shared_bytes_per_sm;
        case 82: return d.registers_per_sm;
        case 83: return 1;  // managed memory
        case 90: return 0;  // preemption: this device never preempts a kernel
        case 95: return 1;  // cooperative launch
        case 97: return d.shared_bytes_per_block;
        case 102: return 1;  // virtual memory management
        case 106: return d.blocks_per_sm;
        case 111: return 1024;                          // shared memory that the driver keeps of each block
        case 115: return 1;                             // memory pools
        case 120: return d.compute_major >= 9 ? 1 : 0;  // clusters
        case 133: return config().mps && driver().host.shared() ? 1 : 0;
        default: return 0;
    }
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

CUresult cuInit(unsigned int flags) {
    return call(Entry::cuInit, Need::nothing, [&](Session& session) -> CUresult {
        if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
        const CUresult result = open_driver();
        session.join_device();
        return result;
    });
}

CUresult cuDriverGetVersion(int* version) {
    return call(Entry::cuDriverGetVersion, Need::nothing, [&](Session&) -> CUresult {
        if (version == nullptr) return CUDA_ERROR_INVALID_VALUE;
        *version = config().driver_version;
        return CUDA_SUCCESS;
    });
}

CUresult cuGetErrorName(CUresult error, const char** text) {
    return call(Entry::cuGetErrorName, Need::nothing, [&](Session&) -> CUresult {
        const ErrorText* found = find_error(error);
        *text = found != nullptr ? found->name : nullptr;
        return found != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    });
}

CUresult cuGetErrorString(CUresult error, const char** text) {
    return call(Entry::cuGetErrorString, Need::nothing, [&](Session&) -> CUresult {
        const ErrorText* found = find_error(error);
        *text = found != nullptr ? found->text : nullptr;
        return found != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    });
}

CUresult cuDeviceGet(CUdevice* device, int ordinal) {
    return call(Entry::cuDeviceGet, Need::device, [&](Session&) -> CUresult {
        if (device == nullptr) return CUDA_ERROR_INVALID_VALUE;
        if (ordinal != 0) return CUDA_ERROR_INVALID_DEVICE;
        *device = 0;
        return CUDA_SUCCESS;
    });
}

CUresult cuDeviceGetCount(int* count) {
    return call(Entry::cuDeviceGetCount, Need::device, [&](Session&) -> CUresult {
        if (count == nullptr) return CUDA_ERROR_INVALID_VALUE;
        *count = 1;
        return CUDA_SUCCESS;
    });
}

CUresult cuDeviceGetName(char* name, int length, CUdevice device) {
    return call(Entry::cuDeviceGetName, Need::device, [&](Session&) -> CUresult {
        if (name == nullptr || length <= 0) return CUDA_ERROR_INVALID_VALUE;
        if (!good_device(device)) return CUDA_ERROR_INVALID_DEVICE;
        std::snprintf(name, static_cast<std::size_t>(length), "%s", spec().name);
        return CUDA_SUCCESS;
    });
}

static CUresult device_uuid(Entry entry, CUuuid* uuid, CUdevice device) {
    return call(entry, Need::device, [&](Session&) -> CUresult {
        if (uuid == nullptr) return CUDA_ERROR_INVALID_VALUE;
        if (!good_device(device)) return CUDA_ERROR_INVALID_DEVICE;
        std::memset(uuid, 0xfa, sizeof *uuid);
        return CUDA_SUCCESS;
    });
}
CUresult cuDeviceGetUuid(CUuuid* uuid, CUdevice device) { return device_uuid(Entry::cuDeviceGetUuid, uuid, device); }
CUresult cuDeviceGetUuid_v2(CUuuid* uuid, CUdevice device) {
    return device_uuid(Entry::cuDeviceGetUuid_v2, uuid, device);
}

CUresult cuDeviceTotalMem_v2(std::size_t* bytes, CUdevice device) {
    return call(Entry::cuDeviceTotalMem_v2, Need::device, [&](Session&) -> CUresult {
        if (bytes == nullptr) return CUDA_ERROR_INVALID_VALUE;
        if (!good_device(device)) return CUDA_ERROR_INVALID_DEVICE;
        *bytes = static_cast<std::size_t>(spec().memory_bytes);
        return CUDA_SUCCESS;
    });
}

CUresult cuDeviceGetAttribute(int* value, int which, CUdevice device) {
    return call(Entry::cuDeviceGetAttribute, Need::device, [&](Session&) -> CUresult {
        if (value == nullptr || which <= 0) return CUDA_ERROR_INVALID_VALUE;
        if (!good_device(device)) return CUDA_ERROR_INVALID_DEVICE;
        *value = attribute(which);
        return CUDA_SUCCESS;
    });
}

CUresult cuDeviceComputeCapability(int* major, int* minor, CUdevice device) {
    return call(Entry::cuDeviceComputeCapability, Need::device, [&](Session&) -> CUresult {
        if (!good_device(device)) return CUDA_ERROR_INVALID_DEVICE;
        *major = spec().compute_major;
        *minor = spec().compute_minor;
        return CUDA_SUCCESS;
    });
}

CUresult cuDeviceGetPCIBusId(char* text, int length, CUdevice device) {
    return call(Entry::cuDeviceGetPCIBusId, Need::device, [&](Session&) -> CUresult {
        if (text == nullptr || length < 13) return CUDA_ERROR_INVALID_VALUE;
        if (!good_device(device)) return CUDA_ERROR_INVALID_DEVICE;
        std::snprintf(text, static_cast<std::size_t>(length), "0000:01:00.0");
        return CUDA_SUCCESS;
    });
}

CUresult cuDeviceGetByPCIBusId(CUdevice* device, const char* text) {
    return call(Entry::cuDeviceGetByPCIBusId, Need::device, [&](Session&) -> CUresult {
        if (device == nullptr || text == nullptr) return CUDA_ERROR_INVALID_VALUE;
        if (std::strstr(text, "01:00.0") == nullptr) return CUDA_ERROR_INVALID_DEVICE;
        *device = 0;
        return CUDA_SUCCESS;
    });
}

CUresult cuDeviceCanAccessPeer(int* can, CUdevice device, CUdevice peer) {
    return call(Entry::cuDeviceCanAccessPeer, Need::device, [&](Session&) -> CUresult {
        if (!good_device(device) || !good_device(peer)) return CUDA_ERROR_INVALID_DEVICE;
        *can = 0;
        return CUDA_SUCCESS;
    });
}

}  // extern "C"
#pragma GCC visibility pop
