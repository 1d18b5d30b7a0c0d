// Stands for a gate: holds a ticket around every second launch, which is what FAKECUDA_STRICT asks of each.
#include "linked.hpp"

namespace {
thread_local unsigned long long t_ticket = 0;
}

extern "C" __attribute__((visibility("default"))) unsigned long long tierline_gate_ticket(void) { return t_ticket; }

int main() {
    client::start();
    const CUfunction kernel = client::function(client::load(), "tiny_kernel");
    const CUstream stream = client::stream();
    std::printf("{\"statuses\": [");
    for (int i = 0; i < 4; ++i) {
        t_ticket = i % 2 == 0 ? 1 : 0;
        std::printf("%s%d", i > 0 ? ", " : "", client::launch(kernel, stream, 16, i));
    }
    client::must(cuStreamSynchronize(stream), "cuStreamSynchronize");
    std::printf("]}\n");
    return 0;
}
