#include "kernels.hpp"

#include "driver.hpp"
#include "session.hpp"
#include "tag.hpp"
#include "thread.hpp"

#include <cstring>

namespace tierline::interpose {

std::atomic<std::uint64_t> g_kernel_generation{1};

bool is_collective(const char* name) {
    return std::strstr(name, "ncclDevKernel") != nullptr || std::strstr(name, "ncclKernel") != nullptr ||
           std::strstr(name, "nvshmem") != nullptr;
}

KernelChoice Kernels::choose(const LaunchShape& shape) {
    Tag* tag = t_thread.tag.shape != 0 ? &t_thread.tag : nullptr;
    const std::uint64_t tagged = tag != nullptr ? tag->shape : 0;
    const std::uint64_t generation = g_kernel_generation.load(std::memory_order_acquire);
    std::uint64_t mixed = reinterpret_cast<std::uintptr_t>(shape.function) >> 4;
    mixed = (mixed ^ shape.grid[0] ^ std::uint64_t{shape.grid[1]} << 20 ^ std::uint64_t{shape.grid[2]} << 40 ^ tagged) *
            0x9e3779b97f4a7c15ULL;
    mixed = (mixed ^ shape.block[0] ^ std::uint64_t{shape.block[1]} << 12 ^ std::uint64_t{shape.smem} << 24) *
            0x9e3779b97f4a7c15ULL;
    KernelCache& cached = t_thread.kernels[(mixed >> 40) % kKernelCache];
    if (cached.function == shape.function && cached.generation == generation && cached.smem == shape.smem &&
        cached.shape == tagged && std::memcmp(cached.grid, shape.grid.data(), sizeof cached.grid) == 0 &&
        std::memcmp(cached.block, shape.block.data(), sizeof cached.block) == 0) {
        return {cached.row, cached.exempt};
    }
    const KernelChoice choice = look_up(shape, tag);
    cached.function = shape.function;
    std::memcpy(cached.grid, shape.grid.data(), sizeof cached.grid);
    std::memcpy(cached.block, shape.block.data(), sizeof cached.block);
    cached.smem = shape.smem;
    cached.row = choice.row;
    cached.shape = tagged;
    cached.generation = generation;
    cached.exempt = choice.exempt;
    return choice;
}

KernelChoice Kernels::look_up(const LaunchShape& shape, Tag* tag) {
    const Function facts = facts_of(shape.function);
    if (facts.exempt) return {-1, true};
    const std::uint64_t key =
        kernel_key(facts.name, shape.grid, shape.block, shape.smem, tag != nullptr ? tag->shape : 0);
    Arbiter& arbiter = session_.arbiter;
    const int existing = arbiter.find_kernel(key);
    if (existing >= 0) return {existing, false};
    KernelFacts row;
    row.name = facts.name;
    row.grid = shape.grid;
    row.block = shape.block;
    row.registers = facts.registers;
    row.smem_static_bytes = facts.smem_static;
    row.smem_dynamic_bytes = shape.smem;
    int occupancy = 0;
    const int threads = static_cast<int>(shape.block[0] * shape.block[1] * shape.block[2]);
    if (driver()->cuOccupancyMaxActiveBlocksPerMultiprocessor != nullptr) {
        const RelaxedCapture relaxed;
        driver()->cuOccupancyMaxActiveBlocksPerMultiprocessor(&occupancy, facts.function, threads, shape.smem);
    }
    row.occupancy = occupancy > 0 ? static_cast<std::uint32_t>(occupancy) : 1;
    if (tag != nullptr && takes_the_work(facts.name)) {
        row.flops = tag->flops;
        row.bytes = tag->bytes;
        tag->flops = tag->bytes = 0.0;
    }
    const ProfileRow* profile = profiles_.find(key, facts.name, shape.grid, shape.block);
    if (profile != nullptr && profile->flops > 0.0) row.flops = profile->flops;
    if (profile != nullptr && profile->bytes > 0.0) row.bytes = profile->bytes;
    const int added = arbiter.add_kernel(key, row);
    if (added >= 0 && profile != nullptr) arbiter.set_profile(added, profile->demand, profile->source);
    return {added, false};
}

Kernels::Function Kernels::facts_of(CUfunction handle) {
    Function facts;
    bool is_kernel = false;
    {
        const std::lock_guard<std::mutex> guard(mutex_);
        const auto found = functions_.find(handle);
        if (found != functions_.end()) {
            if (found->second.asked) return found->second;
            facts = found->second;
        }
        is_kernel = kernel_handles_.count(handle) != 0;
    }
    // Outside the lock: these calls may load the kernel.
    const Driver& table = *driver();
    const RelaxedCapture relaxed;
    if (facts.function == nullptr) facts.function = handle;
    int value = 0;
    const auto asks = [&](CUfunction_attribute which) {
        value = 0;
        return table.cuFuncGetAttribute != nullptr &&
               table.cuFuncGetAttribute(&value, which, facts.function) == CUDA_SUCCESS;
    };
    const auto resolve = [&] {
        CUfunction resolved = nullptr;
        if (table.cuKernelGetFunction == nullptr) return;
        if (table.cuKernelGetFunction(&resolved, reinterpret_cast<CUkernel>(handle)) != CUDA_SUCCESS) return;
        facts.function = resolved;
        is_kernel = true;
    };
    if (is_kernel) resolve();
    // A kernel handle that came by a way without a hook: it fails as a function.
    if (!asks(CU_FUNC_ATTRIBUTE_NUM_REGS) && !is_kernel) {
        resolve();
        asks(CU_FUNC_ATTRIBUTE_NUM_REGS);
    }
    facts.registers = static_cast<std::uint32_t>(value);
    if (asks(CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)) facts.smem_static = static_cast<std::uint32_t>(value);
    if (facts.name.empty()) {
        const char* name = nullptr;
        if (table.cuFuncGetName != nullptr && table.cuFuncGetName(&name, facts.function) == CUDA_SUCCESS &&
            name != nullptr) {
            facts.name = name;
        } else if (is_kernel && table.cuKernelGetName != nullptr &&
                   table.cuKernelGetName(&name, reinterpret_cast<CUkernel>(handle)) == CUDA_SUCCESS &&
                   name != nullptr) {
            facts.name = name;
        } else {
            facts.name = "(unnamed)";
        }
    }
    facts.exempt = is_collective(facts.name.c_str());
    facts.asked = true;
    const std::lock_guard<std::mutex> guard(mutex_);
    functions_[handle] = facts;
    return facts;
}

void Kernels::named(CUfunction function, const char* name) {
    const std::lock_guard<std::mutex> guard(mutex_);
    Function& facts = functions_[function];
    if (facts.name == name) return;
    facts = {};
    facts.name = name;
}

void Kernels::named(CUkernel kernel, const char* name) {
    named(reinterpret_cast<CUfunction>(kernel), name);
    const std::lock_guard<std::mutex> guard(mutex_);
    kernel_handles_[kernel] = true;
}

void Kernels::resolved(CUkernel kernel, CUfunction function) {
    std::string name;
    {
        const std::lock_guard<std::mutex> guard(mutex_);
        const auto found = functions_.find(kernel);
        if (found == functions_.end()) return;
        name = found->second.name;
    }
    named(function, name.c_str());
}

void Kernels::forget() {
    const bool driver_names = driver()->cuFuncGetName != nullptr;
    const std::lock_guard<std::mutex> guard(mutex_);
    // A handle may come back for another kernel by a way without a hook. Before CUDA 12.3 the driver cannot be asked
    // for names, so there they stay until the handle is named again.
    if (driver_names) functions_.clear();
    for (auto& [handle, facts] : functions_) {
        facts.asked = false;
        facts.function = nullptr;
    }
    g_kernel_generation.fetch_add(1, std::memory_order_release);
}

}  // namespace tierline::interpose
