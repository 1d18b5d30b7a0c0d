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

// Of its own, enough is in flight: `depth` launches, or more while they are short.
inline bool is_deep_enough(const View& view, const Head& head) {
    for (int index = 0; index < view.running_count; ++index) {
        const RunningStream& running = view.running[index];
        if (running.stream != head.stream) continue;
        return running.queued >= view.config->depth &&
               running.queued_ns + head.demand.duration_ns > view.config->depth_ns;
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
