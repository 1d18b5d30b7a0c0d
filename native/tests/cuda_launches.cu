// A CUDA program of the plainest kind: a kernel launched with <<<>>> by a statically linked runtime. Built with nvcc by
// scripts/gpu where there is a GPU (elsewhere it is only compiled), it shows that the interposer sees every such launch, and
// what a launch costs its thread.
//
//     cuda_launches BURSTS LAUNCHES
//
// Runs one round for each line of its standard input and prints a line of JSON about it: nanoseconds of the launching
// thread per launch, the median burst and the tenth and ninetieth percentile. A burst is short enough for the device's
// queue, and the device is waited for between bursts, outside the time taken. Last comes how many launches there were and
// how many the device counted.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

__global__ void count_one(unsigned long long* counter) { if (threadIdx.x == 0) atomicAdd(counter, 1ULL); }

static void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    std::fprintf(stderr, "cuda_launches: %s: %s\n", what, cudaGetErrorString(status));
    std::exit(1);
}

int main(int argc, char** argv) {
    const int bursts = argc > 1 ? std::atoi(argv[1]) : 200;
    const int launches = argc > 2 ? std::atoi(argv[2]) : 500;
    if (bursts < 1 || launches < 1) {
        std::fprintf(stderr, "cuda_launches: BURSTS and LAUNCHES have to be 1 or more.\n");
        return 2;
    }
    cudaStream_t stream;
    unsigned long long* counter = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream");
    check(cudaMalloc(&counter, sizeof *counter), "memory");
    check(cudaMemset(counter, 0, sizeof *counter), "memset");
    check(cudaDeviceSynchronize(), "synchronize");
    unsigned long long launched = 0;
    std::vector<double> ns(bursts);
    char line[64];
    while (std::fgets(line, sizeof line, stdin)) {
        for (int burst = 0; burst < bursts; ++burst) {
            const auto began = std::chrono::steady_clock::now();
            for (int i = 0; i < launches; ++i) count_one<<<1, 32, 0, stream>>>(counter);
            const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - began;
            check(cudaGetLastError(), "a launch");
            check(cudaStreamSynchronize(stream), "synchronize");
            ns[burst] = took.count() / launches;
            launched += launches;
        }
        std::sort(ns.begin(), ns.end());
        std::printf("{\"median_ns\": %.1f, \"p10_ns\": %.1f, \"p90_ns\": %.1f}\n", ns[bursts / 2], ns[bursts / 10], ns[bursts * 9 / 10]);
        std::fflush(stdout);
    }
    unsigned long long executed = 0;
    check(cudaMemcpy(&executed, counter, sizeof executed, cudaMemcpyDeviceToHost), "copy");
    std::printf("{\"launched\": %llu, \"executed\": %llu}\n", launched, executed);
    return executed == launched ? 0 : 1;
}
