#include "losses.hpp"

#include <algorithm>

namespace tierline {

namespace {

constexpr double kLearningRate = 0.3;
constexpr double kMostHarm = 4.0;
constexpr double kCleanMemory = 0.02;
constexpr Nanoseconds kDeepest = -kSecond;
constexpr Nanoseconds kLeastAtOnce = 20 * kMicrosecond;
constexpr Nanoseconds kAtOnceUnknown = 500 * kMicrosecond;  // when no iteration was seen

void put(Region& region, double change_ns, Nanoseconds most_ns) {
    Nanoseconds& balance_ns = region.losses.balance_ns;
    balance_ns = std::clamp(balance_ns + static_cast<Nanoseconds>(change_ns), kDeepest, most_ns);
}

double allowed_share(const Region& region) { return std::max(0.0, region.config.slowdown_limit - 1.0); }

Nanoseconds overlap(const Shadow& shadow, Nanoseconds from_ns, Nanoseconds to_ns) {
    return std::max<Nanoseconds>(0, std::min(shadow.ends_ns, to_ns) - std::max(shadow.begins_ns, from_ns));
}

}  // namespace

Nanoseconds most_at_once(const Region& region, Nanoseconds iteration_ns) {
    if (iteration_ns == 0) return kAtOnceUnknown;
    return std::max(kLeastAtOnce, static_cast<Nanoseconds>(allowed_share(region) * double(iteration_ns)));
}

void cast_shadow(Region& region, int kernel, Nanoseconds backlog_ns, Nanoseconds duration_ns, Nanoseconds now_ns) {
    LossAccount& losses = region.losses;
    losses.shadows[losses.next % kShadows] = {now_ns + backlog_ns, now_ns + backlog_ns + duration_ns, kernel};
    ++losses.next;
}

void charge_losses(Region& region, Client& client, const Ended& ended, Nanoseconds now_ns) {
    if (!ended.clear) return;
    const double lost_ns = double(ended.observed_ns - ended.predicted_ns);
    const double allowed_ns = allowed_share(region) * double(ended.observed_ns);
    const Nanoseconds most_ns = most_at_once(region, client.iteration_ns);
    double beside = 0.0;
    double squares = 0.0;
    double expected_ns = 0.0;
    for (const Shadow& shadow : region.losses.shadows) {
        const double time_ns = double(overlap(shadow, ended.began_ns, now_ns));
        if (time_ns <= 0.0 || shadow.kernel < 0) continue;
        beside += time_ns;
        squares += time_ns * time_ns;
        expected_ns += region.kernels[shadow.kernel].harm * time_ns;
    }
    region.losses.settled_ns = now_ns;
    if (beside == 0.0) {
        ++client.clean_samples;
        const double weight = std::max(kCleanMemory, 1.0 / double(client.clean_samples));
        client.clean_loss_ns += weight * (lost_ns / ended.count - client.clean_loss_ns);
        put(region, allowed_ns, most_ns);
        return;
    }
    const double excess_ns = lost_ns - client.clean_loss_ns * ended.count;
    client.statistics.lost_ns += static_cast<Nanoseconds>(excess_ns);
    put(region, allowed_ns - excess_ns, most_ns);
    // An end that is noticed late makes one interval longer and the next one shorter: short intervals teach little.
    const double trust = double(ended.observed_ns) / double(ended.observed_ns + 2 * region.config.resolution_ns + 1);
    const double step = kLearningRate * trust * (excess_ns - expected_ns) / squares;
    for (const Shadow& shadow : region.losses.shadows) {
        const double time_ns = double(overlap(shadow, ended.began_ns, now_ns));
        if (time_ns <= 0.0 || shadow.kernel < 0) continue;
        double& harm = region.kernels[shadow.kernel].harm;
        harm = std::clamp(harm + step * time_ns, 0.0, kMostHarm);
    }
}

void credit_idle(Region& region, bool high_priority_at_work, Nanoseconds now_ns) {
    LossAccount& losses = region.losses;
    if (!high_priority_at_work && losses.balance_ns < 0) {
        const double idle_ns = double(now_ns - losses.settled_ns);
        losses.balance_ns = std::min<Nanoseconds>(
            0, losses.balance_ns + static_cast<Nanoseconds>(allowed_share(region) * std::max(0.0, idle_ns)));
    }
    losses.settled_ns = std::max(losses.settled_ns, now_ns);
}

Nanoseconds uncommitted(const Region& region, Nanoseconds now_ns) {
    double committed_ns = 0.0;
    for (const Shadow& shadow : region.losses.shadows) {
        if (shadow.ends_ns <= now_ns || shadow.kernel < 0) continue;
        committed_ns += region.kernels[shadow.kernel].harm * double(shadow.ends_ns - std::max(now_ns, shadow.begins_ns));
    }
    return region.losses.balance_ns - static_cast<Nanoseconds>(committed_ns);
}

}  // namespace tierline
