// How long a launch takes on the fake driver, without the interposer and with it: `bench_launch INTERPOSER DRIVER_FOLDER
// [ROUNDS]`. Runs of each case alternate with runs without it, so that drift of the machine falls on both; a figure is the
// median over rounds of the median over batches. Prints JSON. The fake driver's own work is in every figure; what the
// interposer adds is the difference.
//
// Cases: the measured client alone, or beside 1 to 31 others that all have a kernel in flight and fit beside it, as high
// priority and as best effort. `waited` says how many measured launches were not admitted at once: it has to be 0.
#include "abi/cuda.hpp"
#include "tierline/region.hpp"

#include <dlfcn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

namespace {

constexpr int kBatch = 16;
constexpr int kBatches = 400;
constexpr int kWarm = 20;

struct Case {
    const char* name;
    int clients;       // 0 = without the interposer
    const char* priority;
};

struct Outcome {
    double ns = 0.0;
    unsigned long long waited = 0;
};

template <class Function>
Function symbol(void* library, const char* name) {
    auto found = reinterpret_cast<Function>(dlsym(library, name));
    if (found == nullptr) {
        std::fprintf(stderr, "%s: not found\n", name);
        std::exit(1);
    }
    return found;
}

void need(CUresult result, const char* what) {
    if (result == CUDA_SUCCESS) return;
    std::fprintf(stderr, "%s: %d\n", what, static_cast<int>(result));
    std::exit(1);
}

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values.empty() ? 0.0 : values[values.size() / 2];
}

constexpr const char* kImage =
    "FAKECUDA 1\n"
    "kernel quick flops=1e4 bytes=1e2 params=8,4\n"
    "kernel lasting flops=1e13 bytes=1e3 params=8,4\n";

// The measured process. Prints the median time of a launch in nanoseconds.
int measure(int clients) {
    void* library = dlopen("libcuda.so.1", RTLD_NOW);
    if (library == nullptr) return 1;
    const auto init = symbol<CUresult (*)(unsigned)>(library, "cuInit");
    const auto retain = symbol<CUresult (*)(CUcontext*, CUdevice)>(library, "cuDevicePrimaryCtxRetain");
    const auto set = symbol<CUresult (*)(CUcontext)>(library, "cuCtxSetCurrent");
    const auto load = symbol<CUresult (*)(CUmodule*, const void*)>(library, "cuModuleLoadData");
    const auto get = symbol<CUresult (*)(CUfunction*, CUmodule, const char*)>(library, "cuModuleGetFunction");
    const auto create = symbol<CUresult (*)(CUstream*, unsigned)>(library, "cuStreamCreate");
    const auto synchronize = symbol<CUresult (*)(CUstream)>(library, "cuStreamSynchronize");
    using Launch = CUresult (*)(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream,
                                void**, void**);
    const auto launch = symbol<Launch>(library, "cuLaunchKernel");
    CUcontext context = nullptr;
    CUmodule module = nullptr;
    CUfunction quick = nullptr;
    CUfunction lasting = nullptr;
    need(init(0), "cuInit");
    need(retain(&context, 0), "cuDevicePrimaryCtxRetain");
    need(set(context), "cuCtxSetCurrent");
    need(load(&module, kImage), "cuModuleLoadData");
    need(get(&quick, module, "quick"), "cuModuleGetFunction");
    need(get(&lasting, module, "lasting"), "cuModuleGetFunction");
    std::uint64_t pointer = 1;
    int count = 7;
    void* params[] = {&pointer, &count};
    CUstream stream = nullptr;
    need(create(&stream, CU_STREAM_NON_BLOCKING), "cuStreamCreate");
    const auto batch = [&] {
        for (int index = 0; index < kBatch; ++index) {
            need(launch(quick, 1, 1, 1, 64, 1, 1, 0, stream, params, nullptr), "cuLaunchKernel");
        }
    };
    batch();
    need(synchronize(stream), "cuStreamSynchronize");
    using Begin = int (*)(const char*, int, long long);
    const auto begin = reinterpret_cast<Begin>(dlsym(RTLD_DEFAULT, "tierline_client_begin"));
    for (int other = 1; other < clients; ++other) {
        if (begin == nullptr || begin(("other-" + std::to_string(other)).c_str(), 1, 0) < 0) return 1;
        CUstream own = nullptr;
        need(create(&own, CU_STREAM_NON_BLOCKING), "cuStreamCreate");
        need(launch(lasting, 1, 1, 1, 64, 1, 1, 0, own, params, nullptr), "cuLaunchKernel");
    }
    // The measured stream is the main client's: bound by its number, 0, whatever tag the thread has now.
    using Bind = int (*)(void*, int);
    const auto bind = reinterpret_cast<Bind>(dlsym(RTLD_DEFAULT, "tierline_bind_stream"));
    if (clients > 0 && (bind == nullptr || bind(stream, 0) != 0)) return 1;
    std::vector<double> per_launch;
    for (int round = 0; round < kWarm + kBatches; ++round) {
        const auto from = std::chrono::steady_clock::now();
        batch();
        const auto to = std::chrono::steady_clock::now();
        need(synchronize(stream), "cuStreamSynchronize");
        if (round >= kWarm) {
            per_launch.push_back(std::chrono::duration<double, std::nano>(to - from).count() / kBatch);
        }
    }
    std::printf("%.1f\n", median(per_launch));
    std::fflush(stdout);
    // The others' kernels would run on for long: nothing is waited for.
    _exit(0);
}

std::string self() {
    std::array<char, 4096> path{};
    const ssize_t length = readlink("/proc/self/exe", path.data(), path.size() - 1);
    return length > 0 ? std::string(path.data(), static_cast<std::size_t>(length)) : std::string();
}

struct Files {
    std::string folder;
    std::string region() const { return folder + "/region"; }
    std::string profile() const { return folder + "/profile.csv"; }
};

Outcome run(const Case& what, const std::string& interposer, const std::string& drivers, const Files& files) {
    unlink(files.region().c_str());
    std::array<int, 2> pipe_ends{};
    if (pipe(pipe_ends.data()) != 0) std::exit(1);
    const pid_t child = fork();
    if (child == 0) {
        dup2(pipe_ends[1], STDOUT_FILENO);
        close(pipe_ends[0]);
        setenv("LD_LIBRARY_PATH", drivers.c_str(), 1);
        unsetenv("LD_PRELOAD");
        if (what.clients > 0) {
            setenv("LD_PRELOAD", interposer.c_str(), 1);
            setenv("TIERLINE_ARBITER", files.region().c_str(), 1);
            setenv("TIERLINE_PROFILE", files.profile().c_str(), 1);
            setenv("TIERLINE_PRIORITY", what.priority, 1);
            setenv("TIERLINE_CLIENT", "measured", 1);
        }
        const std::string count = std::to_string(what.clients);
        execl(self().c_str(), "bench_launch", "--measure", count.c_str(), static_cast<char*>(nullptr));
        _exit(127);
    }
    close(pipe_ends[1]);
    std::array<char, 64> text{};
    std::size_t used = 0;
    ssize_t got = 0;
    while (used + 1 < text.size() && (got = read(pipe_ends[0], text.data() + used, text.size() - 1 - used)) > 0) {
        used += static_cast<std::size_t>(got);
    }
    close(pipe_ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    if (status != 0) {
        std::fprintf(stderr, "case '%s' failed (status %d)\n", what.name, status);
        std::exit(1);
    }
    Outcome outcome;
    outcome.ns = std::atof(text.data());
    if (what.clients > 0) {
        char error[256] = "";
        const auto region = tierline::MappedRegion::open(files.region().c_str(), false, error, sizeof error);
        if (region) outcome.waited = region->clients[0].statistics.waited;
    }
    return outcome;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc == 3 && std::strcmp(argv[1], "--measure") == 0) return measure(std::atoi(argv[2]));
    if (argc < 3) {
        std::fprintf(stderr, "usage: bench_launch INTERPOSER DRIVER_FOLDER [ROUNDS]\n");
        return 2;
    }
    const int rounds = argc > 3 ? std::max(1, std::atoi(argv[3])) : 5;
    std::string folder = "/tmp/tierline-bench-XXXXXX";
    if (mkdtemp(folder.data()) == nullptr) return 1;
    const Files files{folder};
    // All kernels are known: nothing is learnt while time is taken. The others use little, so that all fit.
    std::ofstream(files.profile()) << "name,duration_ns,sm_util,bw_util,sm_blocks,source\n"
                                      "quick,1000,0.01,0.01,1,event\n"
                                      "lasting,1000000,0.01,0.01,1,event\n";
    const std::vector<Case> cases = {
        {"high priority, alone", 1, "high"},
        {"high priority beside 1", 2, "high"},
        {"high priority beside 7", 8, "high"},
        {"high priority beside 31", 32, "high"},
        {"best effort, alone", 1, "best-effort"},
        {"best effort beside 1", 2, "best-effort"},
        {"best effort beside 3", 4, "best-effort"},
        {"best effort beside 7", 8, "best-effort"},
        {"best effort beside 15", 16, "best-effort"},
        {"best effort beside 31", 32, "best-effort"},
    };
    const Case bare{"without", 0, "none"};
    std::vector<double> without;
    std::vector<std::vector<double>> with(cases.size());
    std::vector<unsigned long long> waited(cases.size(), 0);
    for (int round = 0; round < rounds; ++round) {
        for (std::size_t index = 0; index < cases.size(); ++index) {
            without.push_back(run(bare, argv[1], argv[2], files).ns);
            const Outcome outcome = run(cases[index], argv[1], argv[2], files);
            with[index].push_back(outcome.ns);
            waited[index] += outcome.waited;
        }
    }
    const double base = median(without);
    std::printf("{\"device\": \"simulated\", \"rounds\": %d, \"launches_per_run\": %d, \"without_ns\": %.0f, \"cases\": [\n", rounds,
                kBatch * kBatches, base);
    for (std::size_t index = 0; index < cases.size(); ++index) {
        const double with_ns = median(with[index]);
        std::printf("  {\"case\": \"%s\", \"clients\": %d, \"with_ns\": %.0f, \"added_ns\": %.0f, \"waited\": %llu}%s\n",
                    cases[index].name, cases[index].clients, with_ns, with_ns - base, waited[index],
                    index + 1 < cases.size() ? "," : "");
    }
    std::printf("]}\n");
    unlink(files.region().c_str());
    unlink(files.profile().c_str());
    rmdir(folder.c_str());
    return 0;
}
