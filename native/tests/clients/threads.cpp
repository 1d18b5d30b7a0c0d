// Several clients in one process: each a thread with a stream of its own. The first may have a higher priority.
#include <atomic>
#include <thread>
#include <vector>

#include "linked.hpp"

int main(int count, char** values) {
    const auto clients = static_cast<int>(client::option(count, values, "--clients", 4));
    const auto launches = static_cast<int>(client::option(count, values, "--launches", 100));
    const auto depth = static_cast<int>(client::option(count, values, "--depth", 10));
    client::start();
    CUcontext context = nullptr;
    client::must(cuDevicePrimaryCtxRetain(&context, 0), "cuDevicePrimaryCtxRetain");
    const CUmodule module = client::load();
    std::atomic<int> failures{0};
    std::atomic<int> ready{0};
    std::vector<long long> ends(static_cast<std::size_t>(clients));
    std::vector<std::thread> threads;
    for (int c = 0; c < clients; ++c) {
        threads.emplace_back([&, c] {
            int bad = cuCtxSetCurrent(context);
            fakecuda_client(static_cast<unsigned>(c + 1));
            CUstream stream = nullptr;
            bad += cuStreamCreateWithPriority(&stream, CU_STREAM_NON_BLOCKING, c == 0 ? -5 : 0);
            CUfunction kernel = nullptr;
            bad += cuModuleGetFunction(&kernel, module, c % 2 == 0 ? "compute_kernel" : "memory_kernel");
            CUevent event = nullptr;
            bad += cuEventCreate(&event, CU_EVENT_DISABLE_TIMING);
            ready.fetch_add(1);
            while (ready.load() < clients) std::this_thread::yield();  // all of them at once
            for (int i = 0; i < launches && bad == 0; ++i) {
                bad += client::launch(kernel, stream, 132, i);
                if (i % depth != depth - 1) continue;
                bad += cuEventRecord(event, stream);
                bad += cuEventSynchronize(event);
            }
            bad += cuStreamSynchronize(stream);
            ends[static_cast<std::size_t>(c)] = fakecuda_now();
            bad += cuEventDestroy_v2(event);
            bad += cuStreamDestroy_v2(stream);
            if (bad != 0) failures.fetch_add(1);
        });
    }
    for (std::thread& thread : threads) thread.join();
    std::printf("{\"clients\": %d, \"launches\": %llu, \"failures\": %d, \"device_ns\": %lld}\n", clients,
                fakecuda_calls("cuLaunchKernel"), failures.load(), fakecuda_now());
    return failures.load() == 0 ? 0 : 1;
}
