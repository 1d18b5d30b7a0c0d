// The third door: one exported function a hook. It passes straight through when the driver calls itself (its own calls
// are not the program's) and when the tier is switched off.
#include "hooks.hpp"
#include "session.hpp"
#include "thread.hpp"

namespace tierline::interpose {

__thread Thread t_thread __attribute__((tls_model("initial-exec")));

}  // namespace tierline::interpose

using namespace tierline::interpose;

extern "C" {

#define TIERLINE_HOOK(symbol, base, version, per_thread, implementation, parameters, arguments)       \
    CUresult symbol parameters {                                                                      \
        const Driver* table = driver();                                                               \
        const Fn_##symbol real = table != nullptr ? table->symbol : g_driver.symbol;                  \
        if (__builtin_expect(real == nullptr, 0)) return CUDA_ERROR_NOT_INITIALIZED;                  \
        if (t_thread.depth != 0 || switched_off()) return real arguments;                             \
        const Inside inside;                                                                          \
        return ([real](auto... argument) {                                                            \
            return implementation(Site<Fn_##symbol>{real, per_thread != 0}, argument...);             \
        }) arguments;                                                                                 \
    }
#include "hooks.def"

__attribute__((visibility("default"))) unsigned long long tierline_gate_ticket(void) { return t_thread.ticket; }
}
