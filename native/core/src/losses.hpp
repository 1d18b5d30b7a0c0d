// What best effort costs high priority, learnt from what is seen. Internal to the core.
#pragma once

#include "running_set.hpp"

namespace tierline {

constexpr double kHarmAtFirst = 0.25;

// A best-effort launch was admitted; it runs behind `backlog_ns` of its own stream. `stream` -1: its end will not be seen.
void cast_shadow(Region& region, int stream, std::uint64_t seq, int kernel, Nanoseconds backlog_ns,
                 Nanoseconds duration_ns, Nanoseconds now_ns);

// The best-effort launches of the stream up to `seq` have ended.
void lift_shadows(Region& region, int stream, std::uint64_t seq, Nanoseconds now_ns);

// High-priority work ended. What it took beyond its prediction is charged to the account, and to the best-effort launches
// that ran meanwhile, by the time they did. From what a launch was charged in all its kernel's rate of harm is learnt.
void charge_losses(Region& region, Client& client, const Ended& ended, Nanoseconds now_ns);

// Credits time in which high priority had no work.
void credit_idle(Region& region, bool high_priority_at_work, Nanoseconds now_ns);

// Most that best effort may cost at once: what the slowdown limit allows one iteration.
Nanoseconds most_at_once(const Region& region, Nanoseconds iteration_ns);

// The balance less what is in flight already.
Nanoseconds uncommitted(const Region& region, Nanoseconds now_ns);

}  // namespace tierline
