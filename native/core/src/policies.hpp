// What the policies share. Internal to the core.
#pragma once

#include "running_set.hpp"
#include "tierline/policy.hpp"

#include <algorithm>

namespace tierline {

void decide_interference(const View& view, std::byte* memory, Verdicts& verdicts);

inline bool runs_alone(const View& view, int client) {
    for (int index = 0; index < view.running_count; ++index) {
        if (view.running[index].client != client) return false;
    }
    return true;
}

// How long the stream still has to do, as predicted; what is of unknown length counts as not begun.
inline Nanoseconds backlog_ns(const RunningStream& running, Nanoseconds now_ns) {
    const Nanoseconds head_ns = queued_at(*running.state, 0).demand.duration_ns;
    const Nanoseconds begun_ns = std::min(head_ns, std::max<Nanoseconds>(0, now_ns - running.since_ns));
    return running.queued_ns - begun_ns;
}

// Of its own, enough is in flight: what is launched cannot be called back. The next one goes just before the device would
// run out of it.
inline bool is_deep_enough(const View& view, const Head& head) {
    for (int index = 0; index < view.running_count; ++index) {
        const RunningStream& running = view.running[index];
        if (running.stream != head.stream) continue;
        if (running.queued >= view.config->depth || !running.known) return true;
        const Nanoseconds backlog = backlog_ns(running, view.now_ns);
        // High priority has nobody to make room for: it may be further ahead, so that the device never runs dry.
        const Nanoseconds enough_ns = view.config->depth_ns * (head.priority == Priority::high ? 5 : 1);
        if (backlog <= enough_ns) return false;
        *view.next_look_ns = std::min(*view.next_look_ns, view.now_ns + backlog - enough_ns);
        return true;
    }
    return false;
}

inline const RunningStream* high_priority_running(const View& view) {
    for (int index = 0; index < view.running_count; ++index) {
        if (view.running[index].priority == Priority::high) return &view.running[index];
    }
    return nullptr;
}

}  // namespace tierline
