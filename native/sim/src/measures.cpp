#include "measures.hpp"

#include <algorithm>

namespace tierline::sim {

namespace {

constexpr double kRounding = 1e-9;  // of sums of doubles

std::size_t window_of(std::int64_t launches) {
    std::size_t index = 0;
    while (launches >> index != 0) ++index;
    return index;
}

}  // namespace

TruthMeter::TruthMeter(const Scenario& scenario, Outcome& outcome)
    : alpha_(scenario.judged_alpha > 0 ? scenario.judged_alpha : double(scenario.config.alpha_ppm) / kWhole),
      beta_(scenario.judged_beta > 0 ? scenario.judged_beta : double(scenario.config.beta_ppm) / kWhole),
      keep_(scenario.keep_sums),
      out_(outcome) {}

void TruthMeter::read(fake::Device& device, std::int64_t launches) {
    fake::TruthSample sample;
    while (device.poll_sample(sample)) {
        hold_until(sample.at_ns, launches);
        last_ = sample;
        if (keep_) out_.sums.push_back({sample.at_ns, sample.sm_sum, sample.bw_sum, sample.clients});
    }
}

void TruthMeter::hold_until(Nanoseconds at_ns, std::int64_t launches) {
    const Nanoseconds lasted_ns = at_ns - last_.at_ns;
    if (lasted_ns <= 0) return;
    if (last_.kernels > 0) out_.busy_ns += lasted_ns;
    if (last_.clients < 2) return;
    out_.shared_ns += lasted_ns;
    out_.shared_sm_peak = std::max(out_.shared_sm_peak, last_.sm_sum);
    out_.shared_bw_peak = std::max(out_.shared_bw_peak, last_.bw_sum);
    const std::size_t index = window_of(launches);
    while (out_.excess.size() <= index) {
        const std::int64_t from = out_.excess.empty() ? 0 : out_.excess.back().to;
        out_.excess.push_back({from, std::max<std::int64_t>(1, 2 * from), 0.0, 0, 0});
    }
    ExcessWindow& window = out_.excess[index];
    window.shared_ns += lasted_ns;
    const double excess = std::max(last_.sm_sum - alpha_, last_.bw_sum - beta_);
    if (excess <= kRounding) return;
    window.most = std::max(window.most, excess);
    window.excess_ns += lasted_ns;
    out_.excess_ns += lasted_ns;
    out_.excess_most = std::max(out_.excess_most, excess);
    out_.last_excess_launch = launches;
}

void TruthMeter::finish(Nanoseconds end_ns, std::int64_t launches) { hold_until(end_ns, launches); }

ClientOutcome outcome_of(const Host& host, Nanoseconds begin_ns, Nanoseconds end_ns) {
    ClientOutcome out;
    out.program = host.program().name;
    out.priority = host.spec->priority;
    out.iterations = std::max(0.0, host.done() - host.done_at_warmup);
    if (end_ns > begin_ns) out.per_s = out.iterations * double(kSecond) / double(end_ns - begin_ns);
    out.latencies_ns = host.latencies_ns;
    if (host.is_server() && host.state != HostState::absent && host.state != HostState::gone) {
        // Requests that have not ended waited at least until now: the one at work, then those in the queue.
        const auto waits_since = [&](Nanoseconds arrival_ns) {
            if (arrival_ns < begin_ns) return;
            out.latencies_ns.push_back(end_ns - arrival_ns);
            ++out.unfinished;
        };
        if (host.state != HostState::next_request) waits_since(host.began_ns);
        Rng arrivals = host.arrivals;
        Nanoseconds arrival_ns = host.next_arrival_ns;
        while (arrival_ns < end_ns) {
            waits_since(arrival_ns);
            arrival_ns += host.gap_ns(arrivals);
        }
    }
    if (!out.latencies_ns.empty()) {
        std::vector<Nanoseconds> sorted = out.latencies_ns;
        std::sort(sorted.begin(), sorted.end());
        // The smallest value that this share of all does not exceed.
        const auto quantile = [&](double share) {
            const double rank = std::ceil(share * double(sorted.size()));
            return sorted[static_cast<std::size_t>(std::max(1.0, rank)) - 1];
        };
        out.p50_ns = quantile(0.50);
        out.p99_ns = quantile(0.99);
        double sum = 0;
        for (const Nanoseconds value : sorted) sum += double(value);
        out.mean_ns = static_cast<Nanoseconds>(sum / double(sorted.size()));
    }
    return out;
}

}  // namespace tierline::sim
