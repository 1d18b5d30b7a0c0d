// fake-program NAME: runs one of the engine's workload programs through the driver's API, as a real program would.
// One JSON line per iteration or request, then a summary. Times are of the simulated device.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "image.hpp"
#include "prototypes.hpp"
#include "report.hpp"
#include "tierline/fake/programs.hpp"

using namespace tierline::fake;

namespace {

struct Arguments {
    std::string name;
    long long iterations = 0;  // 0: no limit
    double seconds = 0;        // of device time; 0: no limit
    double rate = 0;           // requests per second, 0: the program's
    int priority = 0;
    unsigned seed = 1;
    bool quiet = false;
};

constexpr int kUsage = 2;
constexpr int kDriverFailed = 3;

[[noreturn]] void leave(int code, const std::string& why) {
    std::fprintf(stderr, "fake-program: %s\n", why.c_str());
    std::exit(code);
}

void must(CUresult result, const char* what) {
    if (result != CUDA_SUCCESS) leave(kDriverFailed, std::string(what) + " failed with " + std::to_string(result));
}

double positive(const std::string& option, const char* value) {
    char* end = nullptr;
    const double read = value != nullptr ? std::strtod(value, &end) : -1;
    if (value == nullptr || *end != '\0' || !(read > 0) || !std::isfinite(read)) {
        leave(kUsage, option + " takes a number above 0; given: " + (value != nullptr ? value : "nothing"));
    }
    return read;
}

void list_programs() {
    for (const Program& program : programs()) {
        std::printf("%-28s %s\n", program.name.c_str(), program.what.c_str());
    }
}

Arguments read_arguments(int count, char** values) {
    Arguments out;
    for (int i = 1; i < count; ++i) {
        const std::string word = values[i];
        const char* next = i + 1 < count ? values[i + 1] : nullptr;
        if (word == "--list") {
            list_programs();
            std::exit(0);
        } else if (word == "--quiet") {
            out.quiet = true;
        } else if (word == "--iterations") {
            out.iterations = static_cast<long long>(positive(word, next)), ++i;
        } else if (word == "--seconds") {
            out.seconds = positive(word, next), ++i;
        } else if (word == "--rate") {
            out.rate = positive(word, next), ++i;
        } else if (word == "--seed") {
            out.seed = static_cast<unsigned>(positive(word, next)), ++i;
        } else if (word == "--priority") {
            out.priority = next != nullptr ? std::atoi(next) : 0, ++i;
        } else if (word.rfind("--", 0) == 0 || !out.name.empty()) {
            leave(kUsage, "'" + word +
                              "' is unknown; there are NAME, --iterations, --seconds, --rate, --seed, --priority, "
                              "--quiet, --list");
        } else {
            out.name = word;
        }
    }
    if (out.name.empty()) leave(kUsage, "give the name of a program; --list tells them");
    if (out.iterations == 0 && out.seconds == 0) out.iterations = 100;
    return out;
}

// Everything a program holds on the device.
class Runner {
public:
    Runner(const Program& program, int priority) : program_(program) {
        CUcontext context = nullptr;
        must(cuInit(0), "cuInit");
        must(cuDevicePrimaryCtxRetain(&context, 0), "cuDevicePrimaryCtxRetain");
        must(cuCtxSetCurrent(context), "cuCtxSetCurrent");
        if (program.memory_bytes > 0) {
            const CUresult result = cuMemAlloc_v2(&memory_, static_cast<std::size_t>(program.memory_bytes));
            if (result == CUDA_ERROR_OUT_OF_MEMORY) {
                leave(kDriverFailed,
                      program.name + " holds " + std::to_string(program.memory_bytes) + " bytes: out of memory");
            }
            must(result, "cuMemAlloc");
        }
        for (int i = 0; i < program.streams; ++i) {
            must(cuStreamCreateWithPriority(&streams_.emplace_back(), CU_STREAM_NON_BLOCKING, priority),
                 "cuStreamCreateWithPriority");
        }
        for (int i = 0; i < program.events; ++i)
            must(cuEventCreate(&events_.emplace_back(), CU_EVENT_DISABLE_TIMING), "cuEventCreate");
        for (const KernelSpec& kernel : program.kernels) {
            // A module each: several kernels of a program may have one name, as instances of a template do.
            CUmodule module = nullptr;
            must(cuModuleLoadData(&module, module_text(kernel, "8,8").c_str()), "cuModuleLoadData");
            must(cuModuleGetFunction(&functions_.emplace_back(), module, kernel.name), "cuModuleGetFunction");
        }
        for (const auto& nodes : program.graphs) record_graph(nodes);
    }

    void step(const Step& step) {
        fakecuda_host(step.host_ns);
        const CUstream stream = streams_[step.stream];
        switch (step.kind) {
            case StepKind::launch: launch(step.index, stream); break;
            case StepKind::graph: must(cuGraphLaunch(graphs_[step.index], stream), "cuGraphLaunch"); break;
            case StepKind::copy: copy(step, stream); break;
            case StepKind::record: must(cuEventRecord(events_[step.index], stream), "cuEventRecord"); break;
            case StepKind::wait_event:
                must(cuStreamWaitEvent(stream, events_[step.index], 0), "cuStreamWaitEvent");
                break;
            case StepKind::synchronize: must(cuStreamSynchronize(stream), "cuStreamSynchronize"); break;
            case StepKind::synchronize_all:
                for (CUstream each : streams_) must(cuStreamSynchronize(each), "cuStreamSynchronize");
                break;
            case StepKind::post: fakecuda_post(step.index); break;
            case StepKind::host:
            case StepKind::end_iteration: break;
        }
    }

private:
    void launch(std::uint32_t index, CUstream stream) {
        const KernelSpec& k = program_.kernels[index];
        CUdeviceptr pointer = memory_;
        std::uint64_t sequence = ++launches_;
        void* arguments[] = {&pointer, &sequence};
        const auto shared = static_cast<unsigned>(k.dynamic_shared_bytes);
        must(k.cooperative ? cuLaunchCooperativeKernel(functions_[index], k.grid[0], k.grid[1], k.grid[2], k.block[0],
                                                       k.block[1], k.block[2], shared, stream, arguments)
                           : cuLaunchKernel(functions_[index], k.grid[0], k.grid[1], k.grid[2], k.block[0], k.block[1],
                                            k.block[2], shared, stream, arguments, nullptr),
             "cuLaunchKernel");
    }

    void record_graph(const std::vector<std::uint32_t>& nodes) {
        CUgraph graph = nullptr;
        must(cuStreamBeginCapture_v2(streams_[0], CU_STREAM_CAPTURE_MODE_THREAD_LOCAL), "cuStreamBeginCapture");
        for (const std::uint32_t index : nodes) launch(index, streams_[0]);
        must(cuStreamEndCapture(streams_[0], &graph), "cuStreamEndCapture");
        must(cuGraphInstantiateWithFlags(&graphs_.emplace_back(), graph, 0), "cuGraphInstantiate");
        must(cuGraphDestroy(graph), "cuGraphDestroy");
    }

    void copy(const Step& step, CUstream stream) {
        const auto bytes = static_cast<std::size_t>(std::min(step.bytes, program_.memory_bytes));
        if (step.direction != Direction::device_to_device && buffer_.size() < bytes) buffer_.resize(bytes);
        switch (step.direction) {
            case Direction::host_to_device:
                must(cuMemcpyHtoDAsync_v2(memory_, buffer_.data(), bytes, stream), "cuMemcpyHtoDAsync");
                break;
            case Direction::device_to_host:
                must(cuMemcpyDtoHAsync_v2(buffer_.data(), memory_, bytes, stream), "cuMemcpyDtoHAsync");
                break;
            case Direction::device_to_device:
                must(cuMemcpyDtoDAsync_v2(memory_, memory_, bytes, stream), "cuMemcpyDtoDAsync");
                break;
            case Direction::fill: must(cuMemsetD8Async(memory_, 0, bytes, stream), "cuMemsetD8Async"); break;
        }
    }

    const Program& program_;
    CUdeviceptr memory_ = 0;
    std::uint64_t launches_ = 0;
    std::vector<CUstream> streams_;
    std::vector<CUevent> events_;
    std::vector<CUfunction> functions_;
    std::vector<CUgraphExec> graphs_;
    std::vector<unsigned char> buffer_;
};

long long quantile(std::vector<long long> values, double share) {
    if (values.empty()) return 0;
    const auto at = static_cast<std::ptrdiff_t>(std::min<double>(
        static_cast<double>(values.size()) - 1, std::ceil(share * static_cast<double>(values.size())) - 1));
    std::nth_element(values.begin(), values.begin() + at, values.end());
    return values[static_cast<std::size_t>(at)];
}

// A curve that falls as losses do; the same for the same step, whoever runs it.
double loss_at(long long step) { return 0.2 + 2.1 / (1.0 + 0.02 * static_cast<double>(step)); }

int run(const Arguments& arguments, const Program& program) {
    Runner runner(program, arguments.priority);
    const bool server = program.kind == ProgramKind::server;
    const double rate = arguments.rate > 0 ? arguments.rate : program.arrivals_per_s;
    std::mt19937_64 random(arguments.seed);
    std::exponential_distribution<double> gap(server && rate > 0 ? rate / 1e9 : 1.0);
    std::vector<long long> latencies;
    const long long began = fakecuda_now();
    long long arrival = began;
    long long step = resumed_step();
    const long long first = step;
    watch_for_stop();
    while (!should_stop()) {
        if (arguments.iterations > 0 && step >= arguments.iterations) break;
        if (arguments.seconds > 0 && static_cast<double>(fakecuda_now() - began) >= arguments.seconds * 1e9) break;
        long long start = fakecuda_now();
        if (server) {
            arrival += static_cast<long long>(gap(random));
            if (arrival > start) fakecuda_host(arrival - start);
            start = arrival;
        }
        for (const Step& each : program.loop) {
            runner.step(each);
            if (each.kind != StepKind::end_iteration) continue;
            ++step;
            const long long now = fakecuda_now();
            const long long latency = now - start;
            start = now;
            latencies.push_back(latency);
            report(step, loss_at(step));
            if (!arguments.quiet) {
                std::printf("{\"step\": %lld, \"latency_ns\": %lld, \"loss\": %.6f}\n", step, latency, loss_at(step));
                std::fflush(stdout);
            }
        }
    }
    must(cuCtxSynchronize(), "cuCtxSynchronize");
    const long long elapsed = fakecuda_now() - began;
    if (should_stop()) save_step(step);
    std::printf(
        "{\"program\": \"%s\", \"simulated_device\": true, \"iterations\": %lld, \"elapsed_ns\": %lld, \"per_second\": "
        "%.6f, "
        "\"p50_ns\": %lld, \"p99_ns\": %lld, \"launches\": %llu}\n",
        program.name.c_str(), step - first, elapsed,
        elapsed > 0 ? static_cast<double>(step - first) * 1e9 / static_cast<double>(elapsed) : 0.0,
        quantile(latencies, 0.5), quantile(latencies, 0.99), fakecuda_calls("cuLaunchKernel"));
    return 0;
}

}  // namespace

int main(int count, char** values) {
    const Arguments arguments = read_arguments(count, values);
    const Program* program = find_program(arguments.name);
    if (program == nullptr) {
        std::string names;
        for (const Program& each : programs()) names += (names.empty() ? "" : ", ") + each.name;
        leave(kUsage, "no program is named '" + arguments.name + "'; there are " + names);
    }
    return run(arguments, *program);
}
