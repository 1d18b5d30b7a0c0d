// A fork before the driver is used (the child may use it) and one after (the child may not; the parent goes on).
#include <sys/wait.h>
#include <unistd.h>

#include "linked.hpp"

namespace {

int in_child(int (*work)()) {
    std::fflush(stdout);
    const pid_t child = ::fork();
    if (child == 0) std::_Exit(work());
    int status = 0;
    ::waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 255;
}

int run_all() {
    client::start();
    const CUfunction kernel = client::function(client::load(), "tiny_kernel");
    const CUstream stream = client::stream();
    return client::launch(kernel, stream) == CUDA_SUCCESS && cuStreamSynchronize(stream) == CUDA_SUCCESS ? 0 : 1;
}

}  // namespace

int main() {
    const int early = in_child(run_all);
    client::start();
    const CUfunction kernel = client::function(client::load(), "compute_kernel");
    const CUstream stream = client::stream();
    client::must(client::launch(kernel, stream), "cuLaunchKernel");
    // Exit codes hold 8 bits: enough for the statuses that may come.
    const int late = in_child([] { return static_cast<int>(cuInit(0)); });
    const int quiet = in_child([] { return 0; });  // a child that does nothing with the driver, as a data loader's
    for (int i = 0; i < 5; ++i) client::must(client::launch(kernel, stream), "cuLaunchKernel");
    client::must(cuStreamSynchronize(stream), "cuStreamSynchronize");
    std::printf("{\"early_child\": %d, \"late_child\": %d, \"quiet_child\": %d, \"parent\": \"done\"}\n", early, late,
                quiet);
    return 0;
}
