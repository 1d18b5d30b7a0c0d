// What a launch means: its arguments are read, its shape gets a kernel number of the device, and it is put into a
// stream.
#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "driver.hpp"

namespace tierline::fakecuda {
namespace {

// The two keys of the `extra` form of a launch, and its end.
void* const kBufferPointer = reinterpret_cast<void*>(1);
void* const kBufferSize = reinterpret_cast<void*>(2);

std::uint64_t product(const std::uint32_t* three) { return static_cast<std::uint64_t>(three[0]) * three[1] * three[2]; }

}  // namespace

Function* function_of(CUfunction handle) {
    if (auto* function = to<Function>(handle, Tag::function)) return function;
    auto* kernel = to<Kernel>(handle, Tag::kernel);
    return kernel != nullptr ? kernel->function : nullptr;
}

CUresult check_launch(const Launch& launch) {
    const DeviceSpec& device = driver().host.device().spec();
    const Function& function = *launch.function;
    const std::uint64_t threads = product(&launch.shape[3]);
    if (product(&launch.shape[0]) == 0 || threads == 0) return CUDA_ERROR_INVALID_VALUE;
    if (launch.shape[1] > 65535 || launch.shape[2] > 65535 || launch.shape[0] > 2147483647U)
        return CUDA_ERROR_INVALID_VALUE;
    if (threads > static_cast<std::uint64_t>(std::min(function.max_threads, device.max_threads_per_block))) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (launch.shape[6] > static_cast<std::uint32_t>(function.max_dynamic_shared)) return CUDA_ERROR_INVALID_VALUE;
    if (launch.cluster[0] != 0) {
        for (int i = 0; i < 3; ++i) {
            const auto at = static_cast<std::size_t>(i);
            if (launch.cluster[at] == 0 || launch.shape[at] % launch.cluster[at] != 0) {
                return static_cast<CUresult>(912);  // CUDA_ERROR_INVALID_CLUSTER_SIZE
            }
        }
        if (device.compute_major < 9 || product(launch.cluster.data()) > 16) return static_cast<CUresult>(912);
    }
    return CUDA_SUCCESS;
}

CUresult kernel_number(const Launch& launch, KernelId& out) {
    Function& function = *launch.function;
    const bool plain = !launch.cooperative;
    if (plain) {
        const auto known = function.numbers.find(launch.shape);
        if (known != function.numbers.end()) {
            out = known->second;
            return CUDA_SUCCESS;
        }
    }
    KernelSpec spec = function.spec;
    const double meant = static_cast<double>(product(spec.block));
    const double scale = meant > 0.0 ? static_cast<double>(product(&launch.shape[3])) / meant : 1.0;
    std::copy(launch.shape.begin(), launch.shape.begin() + 3, spec.grid);
    std::copy(launch.shape.begin() + 3, launch.shape.begin() + 6, spec.block);
    spec.dynamic_shared_bytes = static_cast<std::int32_t>(launch.shape[6]);
    spec.flops_per_block *= scale;
    spec.bytes_per_block *= scale;
    spec.cooperative = spec.cooperative || launch.cooperative;
    const Status status = driver().host.register_kernel(spec, out);
    if (status == Status::too_large && spec.cooperative) return CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE;
    if (status == Status::ok && plain) function.numbers.emplace(launch.shape, out);
    return to_result(status);
}

CUresult read_arguments(Launch& launch, void** parameters, void** extra) {
    const std::vector<std::size_t>& sizes = launch.function->parameters;
    if (parameters != nullptr && extra != nullptr && extra[0] != nullptr) return CUDA_ERROR_INVALID_VALUE;
    if (parameters == nullptr && extra != nullptr) {
        const void* buffer = nullptr;
        std::size_t size = 0;
        for (; *extra != nullptr; extra += 2) {
            if (extra[0] == kBufferPointer) buffer = extra[1];
            if (extra[0] == kBufferSize) size = *static_cast<const std::size_t*>(extra[1]);
        }
        if (buffer == nullptr && size > 0) return CUDA_ERROR_INVALID_VALUE;
        const auto* bytes = static_cast<const std::uint8_t*>(buffer);
        launch.arguments.assign(bytes, bytes + size);
        return CUDA_SUCCESS;
    }
    if (sizes.empty()) return CUDA_SUCCESS;
    if (parameters == nullptr) return CUDA_ERROR_INVALID_VALUE;
    std::size_t at = 0;
    for (std::size_t i = 0; i < sizes.size(); ++i) {
        const std::size_t align = std::min<std::size_t>(sizes[i], 8);
        at = (at + align - 1) / align * align;
        if (parameters[i] == nullptr) return CUDA_ERROR_INVALID_VALUE;
        launch.arguments.resize(at + sizes[i]);
        std::memcpy(launch.arguments.data() + at, parameters[i], sizes[i]);
        launch.offsets.push_back(at);
        at += sizes[i];
    }
    return CUDA_SUCCESS;
}

CUresult enqueue_launch(Session& session, Stream& stream, const Launch& launch) {
    KernelId number = -1;
    if (const CUresult result = kernel_number(launch, number); result != CUDA_SUCCESS) return result;
    driver().host.pass(config().launch_ns);
    note_launch();
    const CUresult result = enqueue(session, stream, [&] { return driver().host.kernel(stream.engine, number); });
    return result == CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES && launch.cooperative ? CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE
                                                                              : result;
}

CUresult enqueue_host_call(Session& session, Stream& stream, CUhostFn function, void* user_data) {
    Driver& d = driver();
    const std::uint32_t index = d.next_host_call++;
    d.host_calls[index] = PendingHostCall{function, user_data};
    const std::uint64_t cookie = static_cast<std::uint64_t>(d.host.client()) << 32 | index;
    const CUresult result = enqueue(session, stream, [&] { return d.host.host(stream.engine, cookie); });
    if (result != CUDA_SUCCESS) {
        d.host_calls.erase(index);
    } else {
        need_host_thread();
    }
    return result;
}

CUresult check_ticket() {
    if (!config().strict) return CUDA_SUCCESS;
    using Ticket = unsigned long long (*)();
    static std::atomic<Ticket> known{nullptr};
    Ticket ticket = known.load(std::memory_order_acquire);
    if (ticket == nullptr) {
        ticket = reinterpret_cast<Ticket>(::dlsym(RTLD_DEFAULT, "tierline_gate_ticket"));
        known.store(ticket, std::memory_order_release);
    }
    return ticket != nullptr && ticket() != 0 ? CUDA_SUCCESS : CUDA_ERROR_LAUNCH_FAILED;
}

}  // namespace tierline::fakecuda
