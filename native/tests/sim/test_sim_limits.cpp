// The invariant of the kernel tier: in strict mode with exact profiles the device's true sums stay within the limits
// at every instant at which two or more clients run. And the control: the same check fails under a gate that always admits.
#include "check.hpp"
#include "tierline/admission.hpp"
#include "tierline/sim/scenario.hpp"

#include <cstdio>

using namespace tierline;

namespace {

constexpr std::uint64_t kWorkloads = 60;

struct Found {
    int over = 0, stuck = 0;
    std::int64_t launches = 0, forced = 0;
    Nanoseconds shared_ns = 0;
};

Found run(PolicyName policy, Mode mode, sim::Completions completions) {
    Found found;
    const fake::DeviceSpec device = fake::device_spec(fake::Gpu::h200);
    for (std::uint64_t seed = 0; seed < kWorkloads; ++seed) {
        sim::Scenario scenario = sim::random_scenario(device, seed, 4 * kMillisecond);
        scenario.config.policy = policy;
        scenario.config.mode = mode;
        scenario.completions = completions;
        const sim::Outcome outcome = sim::simulate(scenario);
        found.over += outcome.excess_most > 0.0;
        found.stuck += outcome.stuck;
        found.launches += outcome.launches;
        found.shared_ns += outcome.shared_ns;
        for (const sim::ClientOutcome& client : outcome.clients)
            found.forced += static_cast<std::int64_t>(client.statistics.forced);
    }
    std::printf("%s: %d of %d over a limit, %lld launches\n", name_of(policy), found.over, int(kWorkloads),
                static_cast<long long>(found.launches));
    return found;
}

}  // namespace

int main() {
    for (const sim::Completions completions : {sim::Completions::exact, sim::Completions::polled}) {
        const Found strict = run(PolicyName::interference, Mode::strict, completions);
        CHECK(strict.over == 0);
        CHECK(strict.stuck == 0);
        CHECK(strict.forced == 0);
        CHECK(strict.shared_ns > 0);  // not held by keeping everybody apart
        const Found apart = run(PolicyName::sequential, Mode::strict, completions);
        CHECK(apart.stuck == 0);
        CHECK(apart.shared_ns < strict.shared_ns);
        CHECK(run(PolicyName::free, Mode::strict, completions).over > 0);
    }
    return check_result();
}
