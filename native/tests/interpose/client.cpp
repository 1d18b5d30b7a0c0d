// A small CUDA program for the tests of the interposer: `interpose_client DOOR ACTION [NUMBER]`. DOOR says how it gets the
// driver's functions, ACTION what it does with them. It knows nothing of the interposer. Prints one JSON object; exits
// with 1 when the driver answered otherwise than it must.
#include "abi/cuda.hpp"

#include <dlfcn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#define FUNCTIONS(X)                                                                                                \
    X(cuInit, 2000, (unsigned))                                                                                     \
    X(cuDevicePrimaryCtxRetain, 7000, (CUcontext*, CUdevice))                                                       \
    X(cuCtxSetCurrent, 4000, (CUcontext))                                                                           \
    X(cuCtxSynchronize, 2000, ())                                                                                   \
    X(cuModuleLoadData, 2000, (CUmodule*, const void*))                                                             \
    X(cuModuleGetFunction, 2000, (CUfunction*, CUmodule, const char*))                                              \
    X(cuStreamCreate, 2000, (CUstream*, unsigned))                                                                  \
    X(cuStreamSynchronize, 7000, (CUstream))                                                                        \
    X(cuStreamBeginCapture, 10010, (CUstream, CUstreamCaptureMode))                                                 \
    X(cuStreamEndCapture, 10000, (CUstream, CUgraph*))                                                              \
    X(cuStreamDestroy, 4000, (CUstream))                                                                            \
    X(cuGraphInstantiateWithFlags, 11040, (CUgraphExec*, CUgraph, unsigned long long))                              \
    X(cuGraphLaunch, 10000, (CUgraphExec, CUstream))                                                                \
    X(cuMemAlloc, 3020, (CUdeviceptr*, std::size_t))                                                                \
    X(cuMemFree, 3020, (CUdeviceptr))                                                                               \
    X(cuMemGetInfo, 3020, (std::size_t*, std::size_t*))                                                             \
    X(cuEventCreate, 2000, (CUevent*, unsigned))                                                                    \
    X(cuEventRecord, 7000, (CUevent, CUstream))                                                                     \
    X(cuEventSynchronize, 2000, (CUevent))                                                                          \
    X(cuLaunchKernelEx, 11060, (const CUlaunchConfig*, CUfunction, void**, void**))                                 \
    X(cuLaunchCooperativeKernel, 9000,                                                                              \
      (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void**))         \
    X(cuLaunchKernel, 7000,                                                                                         \
      (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void**, void**))

namespace {

struct Api {
#define DECLARE(name, version, parameters) CUresult(*name) parameters;
    FUNCTIONS(DECLARE)
#undef DECLARE
} cu;

void need(CUresult result, const char* what) {
    if (result == CUDA_SUCCESS) return;
    std::fprintf(stderr, "%s: %d\n", what, static_cast<int>(result));
    std::exit(1);
}
#define NEED(call) need(cu.call, #call)

#if defined(__x86_64__)
extern "C" void* old_dlsym(void*, const char*);
__asm__(".symver old_dlsym, dlsym@GLIBC_2.2.5");
#else
void* old_dlsym(void* handle, const char* name) { return dlsym(handle, name); }
#endif

// The exported symbol behind a name: what a program asks dlsym for.
std::string symbol_of(const std::string& name) {
    if (name == "cuMemAlloc" || name == "cuMemFree" || name == "cuMemGetInfo" || name == "cuStreamDestroy" ||
        name == "cuStreamBeginCapture") {
        return name + "_v2";
    }
    return name;
}

#ifdef LINKED
extern "C" void* behind_next(const char* symbol);
#else
void* behind_next(const char*) { return nullptr; }
#endif

using Get1 = CUresult (*)(const char*, void**, int, cuuint64_t);
using Get2 = CUresult (*)(const char*, void**, int, cuuint64_t, CUdriverProcAddressQueryResult*);

void* find(const std::string& door, void* library, const char* name) {
    void* found = nullptr;
    const std::string symbol = symbol_of(name);
    if (door == "dlsym") return dlsym(library, symbol.c_str());
    if (door == "dlsym-old") return old_dlsym(library, symbol.c_str());
    if (door == "default") return dlsym(RTLD_DEFAULT, symbol.c_str());
    if (door == "next") return dlsym(RTLD_NEXT, symbol.c_str());
    if (door == "next-behind") return behind_next(symbol.c_str());
    if (door == "gpa1") {
        const auto get = reinterpret_cast<Get1>(dlsym(library, "cuGetProcAddress"));
        need(get(name, &found, 11080, CU_GET_PROC_ADDRESS_DEFAULT), name);
        return found;
    }
    auto get = reinterpret_cast<Get2>(dlsym(library, "cuGetProcAddress_v2"));
    CUdriverProcAddressQueryResult status = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    if (door == "gpa-self") {
        need(get("cuGetProcAddress", &found, 13000, 0, &status), "cuGetProcAddress");
        get = reinterpret_cast<Get2>(found);
    }
    const cuuint64_t flags = door == "gpa2-ptds" ? CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM : CU_GET_PROC_ADDRESS_DEFAULT;
    const int version = door == "gpa2-12" ? 12000 : 13000;
    // 13.0 has another cuCtxSynchronize.
    const int asked = std::strcmp(name, "cuCtxSynchronize") == 0 ? 12000 : version;
    need(get(name, &found, asked, flags, &status), name);
    if (status != CU_GET_PROC_ADDRESS_SUCCESS) std::exit(1);
    return found;
}

#ifdef LINKED
extern "C" {
#define PLAIN(name, version, parameters) CUresult name parameters;
CUresult cuMemAlloc_v2(CUdeviceptr*, std::size_t);
CUresult cuMemFree_v2(CUdeviceptr);
CUresult cuMemGetInfo_v2(std::size_t*, std::size_t*);
CUresult cuStreamDestroy_v2(CUstream);
CUresult cuStreamBeginCapture_v2(CUstream, CUstreamCaptureMode);
FUNCTIONS(PLAIN)
}
void load_plain() {
    cu.cuMemAlloc = cuMemAlloc_v2;
    cu.cuMemFree = cuMemFree_v2;
    cu.cuMemGetInfo = cuMemGetInfo_v2;
    cu.cuStreamDestroy = cuStreamDestroy_v2;
    cu.cuStreamBeginCapture = cuStreamBeginCapture_v2;
#define PLAIN_SET(name, version, parameters) \
    if (cu.name == nullptr) cu.name = name;
    PLAIN_SET(cuInit, , ) PLAIN_SET(cuDevicePrimaryCtxRetain, , ) PLAIN_SET(cuCtxSetCurrent, , )
    PLAIN_SET(cuCtxSynchronize, , ) PLAIN_SET(cuModuleLoadData, , ) PLAIN_SET(cuModuleGetFunction, , )
    PLAIN_SET(cuStreamCreate, , ) PLAIN_SET(cuStreamSynchronize, , ) PLAIN_SET(cuStreamEndCapture, , )
    PLAIN_SET(cuGraphInstantiateWithFlags, , ) PLAIN_SET(cuGraphLaunch, , ) PLAIN_SET(cuEventCreate, , )
    PLAIN_SET(cuEventRecord, , ) PLAIN_SET(cuEventSynchronize, , ) PLAIN_SET(cuLaunchKernelEx, , )
    PLAIN_SET(cuLaunchCooperativeKernel, , ) PLAIN_SET(cuLaunchKernel, , )
}
#endif

void load(const std::string& door) {
#ifdef LINKED
    if (door == "plain") return load_plain();
#endif
    const bool opens = door != "default" && door != "next" && door != "next-behind";
    void* library = opens ? dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL) : nullptr;
    if (opens && library == nullptr) {
        std::fprintf(stderr, "%s\n", dlerror());
        std::exit(1);
    }
#define LOAD(name, version, parameters) \
    cu.name = reinterpret_cast<decltype(cu.name)>(find(door, library, #name)); \
    if (cu.name == nullptr) {                                                  \
        std::fprintf(stderr, "%s: not found\n", #name);                        \
        std::exit(1);                                                          \
    }
    FUNCTIONS(LOAD)
}

constexpr const char* kImage =
    "FAKECUDA 1\n"
    "kernel compute flops=1e9 bytes=1e4 params=8,4\n"
    "kernel memory flops=1e5 bytes=1e7 params=8,4\n"
    "kernel small flops=1e5 bytes=1e3 params=8,4\n"
    "kernel ncclDevKernel_AllReduce_Sum flops=1e5 bytes=1e5 params=8,4\n"
    "kernel splitKreduce_kernel flops=1e4 bytes=1e3 params=8,4\n"
    "kernel together flops=1e5 bytes=1e5 cooperative=1 params=8,4\n";

CUmodule module;

CUfunction function(const char* name) {
    CUfunction found = nullptr;
    NEED(cuModuleGetFunction(&found, module, name));
    return found;
}

void launch(CUfunction f, CUstream stream, unsigned grid, std::uint64_t value = 1) {
    std::uint64_t pointer = value;
    int count = 7;
    void* params[] = {&pointer, &count};
    NEED(cuLaunchKernel(f, grid, 1, 1, 256, 1, 1, 0, stream, params, nullptr));
    // The driver has read them; a gate that read them later would see this.
    pointer = 0xdeadbeefdeadbeefULL;
    count = -1;
    params[0] = params[1] = nullptr;
}

void print(const char* action, long number) { std::printf("{\"action\": \"%s\", \"number\": %ld}\n", action, number); }

CUcontext context;

void begin() {
    NEED(cuInit(0));
    NEED(cuDevicePrimaryCtxRetain(&context, 0));
    NEED(cuCtxSetCurrent(context));
    NEED(cuModuleLoadData(&module, kImage));
}

CUstream new_stream() {
    CUstream stream = nullptr;
    NEED(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    return stream;
}

}  // namespace

int main(int argc, char** argv) {
    const std::string door = argc > 1 ? argv[1] : "dlsym";
    const std::string action = argc > 2 ? argv[2] : "launch";
    const int number = argc > 3 ? std::atoi(argv[3]) : 10;
    load(door);
    begin();
    if (action == "launch" || action == "memory" || action == "small") {
        const CUfunction f = function(action == "launch" ? "compute" : action.c_str());
        CUstream stream = new_stream();
        for (int i = 0; i < number; ++i) launch(f, stream, action == "small" ? 8 : 132, static_cast<std::uint64_t>(i));
        NEED(cuStreamSynchronize(stream));
        NEED(cuStreamDestroy(stream));
    } else if (action == "default-stream") {
        for (int i = 0; i < number; ++i) launch(function("compute"), nullptr, 132);
        NEED(cuCtxSynchronize());
    } else if (action == "threads") {
        std::vector<std::thread> threads;
        CUstream shared = new_stream();
        for (int t = 0; t < 4; ++t) {
            threads.emplace_back([&, t] {
                NEED(cuCtxSetCurrent(context));
                CUstream own = t % 2 == 0 ? new_stream() : shared;
                for (int i = 0; i < number; ++i) launch(function(t < 2 ? "small" : "compute"), own, 16);
                NEED(cuStreamSynchronize(own));
            });
        }
        for (std::thread& thread : threads) thread.join();
    } else if (action == "exempt") {
        CUstream stream = new_stream();
        for (int i = 0; i < number; ++i) launch(function("ncclDevKernel_AllReduce_Sum"), stream, 16);
        std::uint64_t pointer = 1;
        int count = 7;
        void* params[] = {&pointer, &count};
        NEED(cuLaunchCooperativeKernel(function("together"), 16, 1, 1, 256, 1, 1, 0, stream, params));
        CUlaunchAttribute attribute{};
        attribute.id = CU_LAUNCH_ATTRIBUTE_COOPERATIVE;
        attribute.value.cooperative = 1;
        CUlaunchConfig config{16, 1, 1, 256, 1, 1, 0, stream, &attribute, 1};
        NEED(cuLaunchKernelEx(&config, function("together"), params, nullptr));
        NEED(cuStreamSynchronize(stream));
    } else if (action == "dependent") {
        CUstream stream = new_stream();
        std::uint64_t pointer = 1;
        int count = 7;
        void* params[] = {&pointer, &count};
        CUlaunchAttribute attribute{};
        attribute.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        attribute.value.programmaticStreamSerializationAllowed = 1;
        CUlaunchConfig config{16, 1, 1, 256, 1, 1, 0, stream, &attribute, 1};
        for (int i = 0; i < number; ++i) {
            launch(function("small"), stream, 16);
            NEED(cuLaunchKernelEx(&config, function("small"), params, nullptr));
        }
        NEED(cuStreamSynchronize(stream));
    } else if (action == "capture") {
        // Beside another thread that launches (so that events are out and are polled), in the strictest mode.
        std::atomic<bool> stop{false};
        CUstream beside = new_stream();
        std::thread busy([&] {
            NEED(cuCtxSetCurrent(context));
            const CUfunction f = function("compute");
            while (!stop.load()) {
                launch(f, beside, 64);
                std::this_thread::sleep_for(std::chrono::microseconds(50));
            }
        });
        CUstream stream = new_stream();
        const CUfunction compute = function("compute");
        const CUfunction memory = function("memory");
        for (int i = 0; i < number; ++i) {
            CUgraph graph = nullptr;
            CUgraphExec exec = nullptr;
            NEED(cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
            launch(compute, stream, 132);
            std::this_thread::sleep_for(std::chrono::milliseconds(2));
            launch(memory, stream, 132);
            NEED(cuStreamEndCapture(stream, &graph));
            NEED(cuGraphInstantiateWithFlags(&exec, graph, 0));
            for (int j = 0; j < 3; ++j) NEED(cuGraphLaunch(exec, stream));
            NEED(cuStreamSynchronize(stream));
        }
        stop.store(true);
        busy.join();
        NEED(cuCtxSynchronize());
    } else if (action == "events") {
        CUstream stream = new_stream();
        CUevent event = nullptr;
        NEED(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
        for (int i = 0; i < number; ++i) {
            launch(function("compute"), stream, 132);
            NEED(cuEventRecord(event, stream));
            NEED(cuEventSynchronize(event));
        }
    } else if (action == "fork") {
        CUstream stream = new_stream();
        for (int i = 0; i < number; ++i) launch(function("compute"), stream, 132);
        const pid_t child = fork();
        if (child == 0) {
            // Allowed in a child: anything but the device. Nothing of the parent's may be waited for here.
            void* memory = std::malloc(1 << 20);
            std::free(memory);
            // An own failure, not one of ours: the driver says that it is not initialised, or that the context is none.
            CUdeviceptr pointer = 0;
            cu.cuMemAlloc(&pointer, 16);
            execlp("true", "true", static_cast<char*>(nullptr));
            _exit(2);
        }
        int status = 0;
        waitpid(child, &status, 0);
        if (status != 0) return 1;
        for (int i = 0; i < number; ++i) launch(function("compute"), stream, 132);
        NEED(cuStreamSynchronize(stream));
    } else if (action == "oom") {
        std::size_t free_bytes = 0;
        std::size_t total = 0;
        NEED(cuMemGetInfo(&free_bytes, &total));
        std::vector<CUdeviceptr> held;
        CUdeviceptr pointer = 0;
        CUresult result = CUDA_SUCCESS;
        while ((result = cu.cuMemAlloc(&pointer, std::size_t{1} << 20)) == CUDA_SUCCESS && held.size() < 4096) {
            held.push_back(pointer);
        }
        const long count = static_cast<long>(held.size());
        std::size_t left = 0;
        NEED(cuMemGetInfo(&left, &total));
        for (CUdeviceptr one : held) NEED(cuMemFree(one));
        if (count > 0) NEED(cuMemAlloc(&pointer, std::size_t{1} << 20));
        std::printf("{\"allocated\": %ld, \"result\": %d, \"free\": %zu, \"total\": %zu, \"left\": %zu}\n", count,
                    static_cast<int>(result), free_bytes, total, left);
        return 0;
    } else if (action == "clients") {
        // Several clients in one process, as tierline.kernels.client makes them; a thread without a tag (autograd's) uses
        // the stream of the first. Without the interposer the functions are not there, and nothing differs.
        using Begin = int (*)(const char*, int, long long);
        const auto begin_client = reinterpret_cast<Begin>(dlsym(RTLD_DEFAULT, "tierline_client_begin"));
        const auto end_client = reinterpret_cast<int (*)(int)>(dlsym(RTLD_DEFAULT, "tierline_client_end"));
        const auto bind = reinterpret_cast<int (*)(void*, int)>(dlsym(RTLD_DEFAULT, "tierline_bind_stream"));
        if (begin_client == nullptr || end_client == nullptr || bind == nullptr) return 1;
        const CUfunction small = function("small");
        CUstream made_before = new_stream();
        std::vector<std::thread> threads;
        for (int t = 0; t < 2; ++t) {
            threads.emplace_back([&, t] {
                NEED(cuCtxSetCurrent(context));
                const int client = begin_client(t == 0 ? "first" : "second", t, 1 << 20);
                if (client < 0) std::exit(1);
                CUstream own = new_stream();
                for (int i = 0; i < number; ++i) launch(small, own, 8);
                std::thread([&] {
                    NEED(cuCtxSetCurrent(context));
                    for (int i = 0; i < number; ++i) launch(small, own, 8);
                }).join();
                if (t == 1 && bind(made_before, client) != 0) std::exit(1);
                CUdeviceptr pointer = 0;
                if (cu.cuMemAlloc(&pointer, 1 << 21) != CUDA_ERROR_OUT_OF_MEMORY) std::exit(1);
                NEED(cuStreamSynchronize(own));
                if (t == 1) {
                    std::thread([&] {
                        NEED(cuCtxSetCurrent(context));
                        for (int i = 0; i < number; ++i) launch(small, made_before, 8);
                        NEED(cuStreamSynchronize(made_before));
                    }).join();
                }
                if (end_client(client) != 0) std::exit(1);
                // Its thread and its stream now work for the program's own client.
                launch(small, own, 8);
                NEED(cuStreamSynchronize(own));
            });
        }
        for (std::thread& thread : threads) thread.join();
        CUdeviceptr pointer = 0;
        NEED(cuMemAlloc(&pointer, 1 << 21));
        if (end_client(77) != -1 || bind(made_before, 77) != -1) return 1;
    } else if (action == "announce") {
        // Says when its work is in flight, then waits for it.
        CUstream stream = new_stream();
        for (int i = 0; i < number; ++i) launch(function("compute"), stream, 132);
        print("announce", number);
        std::fflush(stdout);
        NEED(cuStreamSynchronize(stream));
        return 0;
    } else if (action == "contend") {
        // Six clients, two of them of high priority, that do not fit beside one another; each also captures a graph.
        using Begin = int (*)(const char*, int, long long);
        const auto begin_client = reinterpret_cast<Begin>(dlsym(RTLD_DEFAULT, "tierline_client_begin"));
        const auto end_client = reinterpret_cast<int (*)(int)>(dlsym(RTLD_DEFAULT, "tierline_client_end"));
        if (begin_client == nullptr || end_client == nullptr) return 1;
        std::vector<std::thread> threads;
        for (int t = 0; t < 6; ++t) {
            threads.emplace_back([&, t] {
                NEED(cuCtxSetCurrent(context));
                const int client = begin_client(("client-" + std::to_string(t)).c_str(), t % 3 == 0 ? 0 : 1, 0);
                if (client < 0) std::exit(1);
                CUstream own = new_stream();
                const CUfunction first = function(t % 2 == 0 ? "compute" : "memory");
                const CUfunction second = function("small");
                CUgraph graph = nullptr;
                CUgraphExec exec = nullptr;
                NEED(cuStreamBeginCapture(own, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
                launch(first, own, 32);
                launch(second, own, 8);
                NEED(cuStreamEndCapture(own, &graph));
                NEED(cuGraphInstantiateWithFlags(&exec, graph, 0));
                for (int i = 0; i < number; ++i) {
                    launch(i % 3 == 0 ? first : second, own, static_cast<unsigned>(8 + i % 5));
                    if (i % 7 == t) NEED(cuStreamSynchronize(own));
                    if (i % 5 == 4) NEED(cuGraphLaunch(exec, own));
                }
                NEED(cuStreamSynchronize(own));
                if (end_client(client) != 0) std::exit(1);
            });
        }
        for (std::thread& thread : threads) thread.join();
    } else if (action == "gemm") {
        // A library call that launches its main kernel and a helper, in half precision; then a plain launch alike.
        void* blas = dlopen("libcublas.so.13", RTLD_NOW | RTLD_LOCAL);
        using Gemm = int (*)(void*, int, int, int, int, int, const void*, const void*, int, int, const void*, int, int,
                             const void*, void*, int, int, int, int);
        const auto gemm = blas != nullptr ? reinterpret_cast<Gemm>(dlsym(blas, "cublasGemmEx")) : nullptr;
        if (gemm == nullptr) return 1;
        void (*const launches)() = [] {
            launch(function("splitKreduce_kernel"), nullptr, 8);
            launch(function("compute"), nullptr, 132);
        };
        const float alpha = 1.0F;
        const float beta = 0.0F;
        for (int i = 0; i < number; ++i) {
            gemm(reinterpret_cast<void*>(launches), 0, 1, 512, 256, 128, &alpha, nullptr, 2, 512, nullptr, 2, 128, &beta,
                 nullptr, 2, 512, 68, 0);
        }
        launch(function("compute"), nullptr, 132);
        NEED(cuCtxSynchronize());
    } else if (action == "many-threads") {
        // Each thread has a default stream of its own (with the per-thread forms) and leaves work behind when it ends.
        for (int i = 0; i < number; ++i) {
            std::thread([&] {
                NEED(cuCtxSetCurrent(context));
                launch(function("small"), nullptr, 8);
            }).join();
            if (i % 100 == 99) NEED(cuCtxSynchronize());
        }
        NEED(cuCtxSynchronize());
    } else if (action == "join-all") {
        using Begin = int (*)(const char*, int, long long);
        const auto begin_client = reinterpret_cast<Begin>(dlsym(RTLD_DEFAULT, "tierline_client_begin"));
        if (begin_client == nullptr) return 1;
        int refused = 0;
        for (int i = 0; i < number; ++i) refused += begin_client("one of many", 1, 0) < 0 ? 1 : 0;
        if (refused == 0) return 1;
    } else if (action == "streams") {
        for (int i = 0; i < number; ++i) {
            CUstream stream = new_stream();
            launch(function("small"), stream, 8);
            NEED(cuStreamDestroy(stream));
            if (i % 100 == 99) NEED(cuCtxSynchronize());
        }
        NEED(cuCtxSynchronize());
    } else if (action == "refused") {
        // A launch that the driver refuses is told as such, and the next one goes.
        std::uint64_t pointer = 1;
        int count = 7;
        void* params[] = {&pointer, &count};
        CUstream stream = new_stream();
        for (int i = 0; i < number; ++i) {
            if (cu.cuLaunchKernel(function("small"), 0, 1, 1, 256, 1, 1, 0, stream, params, nullptr) == CUDA_SUCCESS) return 1;
            launch(function("small"), stream, 8);
        }
        NEED(cuStreamSynchronize(stream));
    } else if (action == "hold") {
        // Launches and then hangs with the work in flight, until it is killed.
        CUstream stream = new_stream();
        for (int i = 0; i < number; ++i) launch(function("compute"), stream, 132000);
        print("hold", number);
        std::fflush(stdout);
        pause();
    } else {
        std::fprintf(stderr, "no such action: %s\n", action.c_str());
        return 2;
    }
    print(action.c_str(), number);
    return 0;
}
