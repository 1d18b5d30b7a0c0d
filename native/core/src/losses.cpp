#include "losses.hpp"

#include <algorithm>

namespace tierline {

namespace {

constexpr double kLearningRate = 0.2;
constexpr double kMostHarm = 4.0;
constexpr double kLeastBeside = 0.1;  // share of its time that a launch must have run beside high priority to teach
constexpr double kCleanMemory = 0.02;
constexpr Nanoseconds kDeepest = -kSecond;
constexpr Nanoseconds kLeastAtOnce = 20 * kMicrosecond;
constexpr Nanoseconds kAtOnceUnknown = 300 * kMicrosecond;  // when no iteration was seen

void put(Region& region, double change_ns, Nanoseconds most_ns) {
    Nanoseconds& balance_ns = region.losses.balance_ns;
    balance_ns = std::clamp(balance_ns + static_cast<Nanoseconds>(change_ns), kDeepest, most_ns);
}

double allowed_share(const Region& region) { return std::max(0.0, region.config.slowdown_limit - 1.0); }

Nanoseconds overlap(const Shadow& shadow, Nanoseconds from_ns, Nanoseconds to_ns) {
    if (shadow.kernel < 0) return 0;
    const Nanoseconds ends_ns = shadow.ends_ns == 0 ? to_ns : shadow.ends_ns;
    return std::max<Nanoseconds>(0, std::min(ends_ns, to_ns) - std::max(shadow.begins_ns, from_ns));
}

// All that it cost has been seen: its kernel learns, per time that it takes alone.
void learn(Region& region, Shadow& shadow) {
    const double life_ns = double(shadow.ends_ns - shadow.begins_ns);
    const double share = life_ns > 0.0 ? std::min(1.0, shadow.beside_ns / life_ns) : 0.0;
    if (shadow.kernel >= 0 && shadow.predicted_ns > 0 && share >= kLeastBeside) {
        const double seen = std::clamp(shadow.lost_ns / (share * double(shadow.predicted_ns)), 0.0, kMostHarm);
        double& harm = region.kernels[shadow.kernel].harm;
        harm += kLearningRate * share * (seen - harm);
    }
    shadow.kernel = -1;
}

}  // namespace

Nanoseconds most_at_once(const Region& region, Nanoseconds iteration_ns) {
    if (iteration_ns == 0) return kAtOnceUnknown;
    return std::max(kLeastAtOnce, static_cast<Nanoseconds>(allowed_share(region) * double(iteration_ns)));
}

void cast_shadow(Region& region, int stream, std::uint64_t seq, int kernel, Nanoseconds backlog_ns,
                 Nanoseconds duration_ns, Nanoseconds now_ns) {
    LossAccount& losses = region.losses;
    Shadow& shadow = losses.shadows[losses.next++ % kShadows];
    const Nanoseconds begins_ns = now_ns + backlog_ns;
    shadow = {begins_ns, stream < 0 ? begins_ns + duration_ns : 0, duration_ns, seq, stream, kernel, 0.0, 0.0};
}

void lift_shadows(Region& region, int stream, std::uint64_t seq, Nanoseconds now_ns) {
    for (Shadow& shadow : region.losses.shadows) {
        if (shadow.stream != stream || shadow.ends_ns != 0 || shadow.seq > seq) continue;
        shadow.begins_ns = std::min(shadow.begins_ns, now_ns);
        shadow.ends_ns = std::max<Nanoseconds>(1, now_ns);
    }
}

void charge_losses(Region& region, Client& client, const Ended& ended, Nanoseconds now_ns) {
    if (!ended.clear) return;
    const double lost_ns = double(ended.observed_ns - ended.predicted_ns);
    const double allowed_ns = allowed_share(region) * double(ended.observed_ns);
    const Nanoseconds most_ns = most_at_once(region, client.iteration_ns);
    double beside_ns = 0.0;
    for (const Shadow& shadow : region.losses.shadows) beside_ns += double(overlap(shadow, ended.began_ns, now_ns));
    region.losses.settled_ns = now_ns;
    if (beside_ns == 0.0) {
        ++client.clean_samples;
        const double weight = std::max(kCleanMemory, 1.0 / double(client.clean_samples));
        client.clean_loss_ns += weight * (lost_ns / ended.count - client.clean_loss_ns);
        put(region, allowed_ns, most_ns);
        return;
    }
    const double excess_ns = lost_ns - client.clean_loss_ns * ended.count;
    client.statistics.lost_ns += static_cast<Nanoseconds>(excess_ns);
    put(region, allowed_ns - excess_ns, most_ns);
    for (Shadow& shadow : region.losses.shadows) {
        const double time_ns = double(overlap(shadow, ended.began_ns, now_ns));
        shadow.lost_ns += excess_ns * time_ns / beside_ns;
        shadow.beside_ns += time_ns;
        if (shadow.kernel >= 0 && shadow.ends_ns != 0 && shadow.ends_ns < ended.began_ns) learn(region, shadow);
    }
}

void credit_idle(Region& region, bool high_priority_at_work, Nanoseconds now_ns) {
    LossAccount& losses = region.losses;
    if (!high_priority_at_work) losses.idle_ns = now_ns;
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
        if (shadow.kernel < 0 || shadow.ends_ns != 0) continue;
        const Nanoseconds ran_ns = std::max<Nanoseconds>(0, now_ns - shadow.begins_ns);
        const Nanoseconds left_ns = std::max<Nanoseconds>(0, shadow.predicted_ns - ran_ns);
        committed_ns += region.kernels[shadow.kernel].harm * double(left_ns);
    }
    return region.losses.balance_ns - static_cast<Nanoseconds>(committed_ns);
}

}  // namespace tierline
