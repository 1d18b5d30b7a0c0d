#include "captures.hpp"

#include "driver.hpp"
#include "session.hpp"
#include "thread.hpp"

#include <sched.h>

#include <algorithm>
#include <string>
#include <vector>

namespace tierline::interpose {

namespace {

constexpr int kNesting = 4;  // child graphs within child graphs

}  // namespace

// What the kernels of a graph come to. A graph runs as one unit: its duration is at most the sum, its demand at any
// time at least that of its largest kernel.
struct Captures::Sum {
    std::uint64_t shape = 0xcbf29ce484222325ULL;
    std::uint32_t kernels = 0;
    bool exempt = false;
    bool known = true;
    bool work_known = true;
    double flops = 0.0;
    double bytes = 0.0;
    Demand demand;
    Source source = Source::counters;
    // of the kernel with most blocks
    std::array<std::uint32_t, 3> grid{1, 1, 1};
    std::array<std::uint32_t, 3> block{1, 1, 1};
    std::uint32_t occupancy = 1;
    double widest = 0.0;
};

bool Captures::is_capturing(StreamEntry& entry, CUstream stream, bool per_thread) {
    if (!any()) return false;
    if (entry.capturing.load(std::memory_order_seq_cst)) return true;
    const Driver& table = *driver();
    const auto asked = per_thread && table.cuStreamIsCapturing_ptsz != nullptr ? table.cuStreamIsCapturing_ptsz
                                                                              : table.cuStreamIsCapturing;
    if (asked == nullptr) return true;
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    // An error: the legacy stream beside a capture that forbids it. Whatever comes next there fails or is captured.
    return asked(stream, &status) != CUDA_SUCCESS || status != CU_STREAM_CAPTURE_STATUS_NONE;
}

void Captures::beginning(StreamEntry& entry) {
    entry.capturing.store(true, std::memory_order_seq_cst);
    open_.fetch_add(1, std::memory_order_seq_cst);
    while (entry.fencing.load(std::memory_order_seq_cst)) sched_yield();
}

void Captures::over(StreamEntry& entry) {
    if (!entry.capturing.exchange(false, std::memory_order_seq_cst)) return;
    open_.fetch_sub(1, std::memory_order_seq_cst);
}

void Captures::add_nodes(CUgraph graph, Sum& sum, int depth) {
    const Driver& table = *driver();
    std::size_t count = 0;
    if (depth > kNesting || table.cuGraphGetNodes == nullptr || table.cuGraphNodeGetType == nullptr) return;
    if (table.cuGraphGetNodes(graph, nullptr, &count) != CUDA_SUCCESS || count == 0) return;
    std::vector<CUgraphNode> nodes(count);
    if (table.cuGraphGetNodes(graph, nodes.data(), &count) != CUDA_SUCCESS) return;
    for (CUgraphNode node : nodes) {
        CUgraphNodeType type = CU_GRAPH_NODE_TYPE_EMPTY;
        if (table.cuGraphNodeGetType(node, &type) != CUDA_SUCCESS) continue;
        if (type == CU_GRAPH_NODE_TYPE_GRAPH && table.cuGraphChildGraphNodeGetGraph != nullptr) {
            CUgraph child = nullptr;
            if (table.cuGraphChildGraphNodeGetGraph(node, &child) == CUDA_SUCCESS) add_nodes(child, sum, depth + 1);
        }
        if (type != CU_GRAPH_NODE_TYPE_KERNEL) continue;
        // The older form's fields are the beginning of the newer one's.
        CUDA_KERNEL_NODE_PARAMS params{};
        const bool told =
            (table.cuGraphKernelNodeGetParams_v2 != nullptr &&
             table.cuGraphKernelNodeGetParams_v2(node, &params) == CUDA_SUCCESS) ||
            (table.cuGraphKernelNodeGetParams != nullptr &&
             table.cuGraphKernelNodeGetParams(node, reinterpret_cast<CUDA_KERNEL_NODE_PARAMS_v1*>(&params)) ==
                 CUDA_SUCCESS);
        ++sum.kernels;
        if (!told) {
            sum.known = false;
            continue;
        }
        CUfunction function = params.func != nullptr ? params.func : reinterpret_cast<CUfunction>(params.kern);
        const KernelChoice choice = session_.kernels.look_up({function,
                                                              {params.gridDimX, params.gridDimY, params.gridDimZ},
                                                              {params.blockDimX, params.blockDimY, params.blockDimZ},
                                                              params.sharedMemBytes},
                                                             nullptr);
        sum.exempt = sum.exempt || choice.exempt;
        if (choice.row < 0) {
            sum.known = false;
            continue;
        }
        // What a kernel is never changes once its row is published; what is learnt of it may.
        const Kernel& kernel = session_.arbiter.region().kernels[static_cast<std::size_t>(choice.row)];
        sum.shape = (sum.shape ^ kernel.key) * 0x100000001b3ULL;
        const auto [demand, source] = session_.arbiter.knowledge_of(choice.row);
        sum.known = sum.known && source > Source::learning;
        sum.source = std::min(sum.source, source);
        sum.demand.sm_ppm = std::max(sum.demand.sm_ppm, demand.sm_ppm);
        sum.demand.bw_ppm = std::max(sum.demand.bw_ppm, demand.bw_ppm);
        sum.demand.sm_blocks = std::max(sum.demand.sm_blocks, demand.sm_blocks);
        sum.demand.duration_ns += demand.duration_ns;
        sum.work_known = sum.work_known && kernel.flops + kernel.bytes > 0.0;
        sum.flops += kernel.flops;
        sum.bytes += kernel.bytes;
        const double wide = double(kernel.grid[0]) * kernel.grid[1] * kernel.grid[2] / std::max(1U, kernel.occupancy);
        if (wide > sum.widest) {
            sum.widest = wide;
            sum.grid = kernel.grid;
            sum.block = kernel.block;
            sum.occupancy = kernel.occupancy;
        }
    }
}

void Captures::instantiated(CUgraphExec exec, CUgraph graph) {
    const RelaxedCapture relaxed;
    Sum sum;
    add_nodes(graph, sum, 0);
    GraphUnit unit;
    unit.exempt = sum.exempt;
    unit.empty = sum.kernels == 0;
    if (!unit.empty && !unit.exempt) {
        const std::string name = "graph of " + std::to_string(sum.kernels) + " kernels";
        KernelFacts facts;
        facts.name = name;
        facts.grid = sum.grid;
        facts.block = sum.block;
        facts.occupancy = sum.occupancy;
        if (sum.work_known) {
            facts.flops = sum.flops;
            facts.bytes = sum.bytes;
        }
        const std::uint64_t key = kernel_key(name, sum.grid, sum.block, 0, sum.shape);
        const int existing = session_.arbiter.find_kernel(key);
        unit.row = existing >= 0 ? existing : session_.arbiter.add_kernel(key, facts);
        if (existing < 0 && unit.row >= 0 && sum.known) session_.arbiter.set_profile(unit.row, sum.demand, sum.source);
    }
    const std::lock_guard<std::mutex> guard(mutex_);
    units_[exec] = unit;
}

void Captures::destroyed(CUgraphExec exec) {
    const std::lock_guard<std::mutex> guard(mutex_);
    units_.erase(exec);
}

GraphUnit Captures::unit_of(CUgraphExec exec) {
    const std::lock_guard<std::mutex> guard(mutex_);
    const auto found = units_.find(exec);
    if (found != units_.end()) return found->second;
    GraphUnit unknown;  // made before us: taken for one that needs the whole device
    unknown.empty = false;
    return unknown;
}

void Captures::recorded(CUevent event, const Mark& mark) {
    const std::lock_guard<SpinLock> guard(marks_lock_);
    if (mark.lane == nullptr) {
        marks_.erase(event);
    } else {
        marks_[event] = mark;
    }
}

Captures::Mark Captures::mark_of(CUevent event) {
    const std::lock_guard<SpinLock> guard(marks_lock_);
    const auto found = marks_.find(event);
    return found != marks_.end() ? found->second : Mark{};
}

void Captures::came(const Mark& mark, bool synchronized) {
    if (mark.lane == nullptr) return;
    session_.completion.ended(*mark.lane, mark.covered);
    if (synchronized) session_.iteration_ended(*mark.lane->client);
}

void Captures::forget(CUevent event) {
    const std::lock_guard<SpinLock> guard(marks_lock_);
    marks_.erase(event);
}

}  // namespace tierline::interpose
