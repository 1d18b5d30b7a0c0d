// The policies that others published, each as its authors' code or paper has it, over the same view. In all but
// `sequential` a high-priority launch never comes to the policy: it does not wait.
#include "policies.hpp"

#include <cmath>

namespace tierline {

namespace {

// One client has the device; when it has nothing in flight the next one gets it, high priority first, else who waits
// longest. No memory.
void decide_sequential(const View& view, std::byte*, Verdicts& verdicts) {
    int owner = view.running_count > 0 ? view.running[0].client : -1;
    if (owner < 0) {
        int next = 0;
        for (int index = 1; index < view.head_count; ++index) {
            const Head& a = view.heads[index];
            const Head& b = view.heads[next];
            if (a.priority < b.priority || (a.priority == b.priority && a.waiting_since_ns < b.waiting_since_ns)) {
                next = index;
            }
        }
        owner = view.heads[next].client;
    }
    // The owner gives way at its next launch when somebody more urgent, or equal and older by a slice, waits.
    constexpr Nanoseconds kSlice = kMillisecond;
    const Priority owner_priority = view.clients[owner].priority;
    bool gives_way = false;
    for (int index = 0; index < view.head_count; ++index) {
        const Head& head = view.heads[index];
        if (head.client == owner) continue;
        if (head.priority < owner_priority) gives_way = true;
        if (head.priority == owner_priority && view.now_ns - head.waiting_since_ns > kSlice) gives_way = true;
    }
    for (int index = 0; index < view.head_count; ++index) {
        const Head& head = view.heads[index];
        if (head.client != owner || (gives_way && view.running_count > 0)) {
            verdicts.reason[index] = Reason::turn;
        } else {
            // High priority gives way to nobody here, so it may launch as far ahead as it likes.
            const bool deep = head.priority == Priority::best_effort && is_deep_enough(view, head);
            verdicts.reason[index] = deep ? Reason::depth : Reason::fits;
        }
    }
}

void decide_free(const View& view, std::byte*, Verdicts& verdicts) {
    std::fill_n(verdicts.reason.begin(), view.head_count, Reason::ungated);
}

// Orion (EuroSys'24), scheduler_eval.cpp as described in its repository: a best-effort kernel goes when high priority is
// idle, or when it is of the other bound class (or one is unknown) and its SMs stay under the threshold; the summed
// duration of best-effort work between two points of quiet is bounded (2.5 % of the high-priority iteration).
// Memory: the largest SM need of high priority (the threshold is half of it), the sum since the last quiet.
struct OrionMemory {
    std::int32_t largest_sms;
    Nanoseconds since_quiet_ns;
};

void decide_orion(const View& view, std::byte* memory, Verdicts& verdicts) {
    auto& state = *reinterpret_cast<OrionMemory*>(memory);
    std::int32_t used_sms = 0;
    for (int index = 0; index < view.running_count; ++index) {
        const RunningStream& running = view.running[index];
        if (running.priority == Priority::high) {
            state.largest_sms = std::max(state.largest_sms, running.demand.sm_blocks);
        } else {
            used_sms += running.demand.sm_blocks;
        }
    }
    if (view.best_effort_in_flight_ns == 0 && used_sms == 0) state.since_quiet_ns = 0;
    const std::int32_t threshold = std::max(1, state.largest_sms / 2);
    const RunningStream* high = high_priority_running(view);
    for (int index = 0; index < view.head_count; ++index) {
        const Head& head = view.heads[index];
        Reason reason = Reason::fits;
        if (is_deep_enough(view, head)) {
            reason = Reason::depth;
        } else if (high != nullptr) {
            const bool differs = high->bound == BoundClass::unknown || head.bound == BoundClass::unknown ||
                                 high->bound != head.bound;
            if (!differs) {
                reason = Reason::bound_class;
            } else if (used_sms + head.demand.sm_blocks > threshold) {
                reason = Reason::sm_limit;
            } else if (state.since_quiet_ns > view.budget_ns) {
                reason = Reason::budget;
            }
        }
        if (admits(reason)) {
            used_sms += head.demand.sm_blocks;
            state.since_quiet_ns += head.demand.duration_ns;
        }
        verdicts.reason[index] = reason;
    }
}

// REEF (OSDI'22), its rule for devices without preemption: best effort goes when high priority is idle, or pads the SMs
// that the running high-priority kernel leaves, if it is over before that one. No memory.
void decide_reef(const View& view, std::byte*, Verdicts& verdicts) {
    std::int32_t high_sms = 0;
    std::int32_t padded_sms = 0;
    Nanoseconds high_left_ns = 0;
    bool high_runs = false;
    for (int index = 0; index < view.running_count; ++index) {
        const RunningStream& running = view.running[index];
        if (running.priority == Priority::high) {
            high_runs = true;
            const Queued& head = queued_at(*running.state, 0);
            high_sms += head.demand.sm_blocks;
            high_left_ns = std::max(high_left_ns, running.since_ns + head.demand.duration_ns - view.now_ns);
        } else {
            padded_sms += running.demand.sm_blocks;
        }
    }
    for (int index = 0; index < view.head_count; ++index) {
        const Head& head = view.heads[index];
        Reason reason = Reason::fits;
        if (is_deep_enough(view, head)) {
            reason = Reason::depth;
        } else if (high_runs) {
            if (high_sms + padded_sms + head.demand.sm_blocks > view.config->device.sms) {
                reason = Reason::sm_limit;
            } else if (head.demand.duration_ns > high_left_ns) {
                reason = Reason::slowdown_limit;
            } else {
                padded_sms += head.demand.sm_blocks;
            }
        } else if (view.high_priority_active) {
            reason = Reason::high_priority_first;
        }
        verdicts.reason[index] = reason;
    }
}

// TGS (NSDI'23): best effort's launch rate is raised (slow start ×1.5, then by steps) while high priority keeps its rate,
// and cut by 8 % when that falls by more than 3 %. Memory: both rates, the window, the tokens.
struct TgsMemory {
    Nanoseconds window_began_ns;
    std::uint64_t launches_then;
    double best_high_rate;  // launches a second, slowly forgotten
    double rate;            // of best effort
    double tokens;
    Nanoseconds tokens_at_ns;
    bool cut_before;
};

void decide_tgs(const View& view, std::byte* memory, Verdicts& verdicts) {
    constexpr Nanoseconds kWindow = 10 * kMillisecond;
    constexpr double kFirstRate = 100.0;
    constexpr double kStep = 50.0;
    constexpr double kMostRate = 1e6;  // no host launches faster
    constexpr double kMostTokens = 4.0;
    constexpr Nanoseconds kLookAgain = 100 * kMicrosecond;
    auto& state = *reinterpret_cast<TgsMemory*>(memory);
    std::uint64_t high_launches = 0;
    bool any_high = false;
    for (int slot = 0; slot < kMaxClients; ++slot) {
        const Client& client = view.clients[slot];
        if (client.state != 1 || client.priority != Priority::high) continue;
        any_high = true;
        high_launches += client.statistics.launches;
    }
    if (state.rate == 0.0) {
        state = {view.now_ns, high_launches, 0.0, kFirstRate, 1.0, view.now_ns, false};
    }
    if (view.now_ns - state.window_began_ns >= kWindow) {
        const double seconds = double(view.now_ns - state.window_began_ns) / double(kSecond);
        const double rate = double(high_launches - state.launches_then) / seconds;
        if (rate < 0.97 * state.best_high_rate) {
            state.rate = std::max(kFirstRate, state.rate * 0.92);
            state.cut_before = true;
        } else {
            state.rate = std::min(kMostRate, state.cut_before ? state.rate + kStep : state.rate * 1.5);
        }
        state.best_high_rate = std::max(rate, 0.999 * state.best_high_rate);
        state.window_began_ns = view.now_ns;
        state.launches_then = high_launches;
    }
    const double elapsed = double(view.now_ns - state.tokens_at_ns) / double(kSecond);
    state.tokens = std::min(kMostTokens, state.tokens + elapsed * state.rate);
    state.tokens_at_ns = view.now_ns;
    for (int index = 0; index < view.head_count; ++index) {
        Reason reason = Reason::fits;
        if (is_deep_enough(view, view.heads[index])) {
            reason = Reason::depth;
        } else if (any_high && state.tokens < 1.0) {
            reason = Reason::rate;
        } else {
            state.tokens -= 1.0;
        }
        verdicts.reason[index] = reason;
    }
    *view.next_look_ns = std::min(*view.next_look_ns, view.now_ns + kLookAgain);
}

// Semi-PD: each class has its share of SMs; best effort stays in its own while high priority is at work. No memory.
void decide_lanes(const View& view, std::byte*, Verdicts& verdicts) {
    std::int32_t used = 0;
    for (int index = 0; index < view.running_count; ++index) {
        if (view.running[index].priority == Priority::best_effort) used += view.running[index].demand.sm_blocks;
    }
    const std::int32_t lane = view.high_priority_active ? view.config->best_effort_lane_sms : view.config->device.sms;
    for (int index = 0; index < view.head_count; ++index) {
        const Head& head = view.heads[index];
        Reason reason = Reason::fits;
        if (is_deep_enough(view, head)) {
            reason = Reason::depth;
        } else if (used + head.demand.sm_blocks > lane && !(used == 0 && !view.high_priority_active)) {
            reason = Reason::lane;
        } else {
            used += head.demand.sm_blocks;
        }
        verdicts.reason[index] = reason;
    }
}

// NanoFlow: at most one kernel per bound class on the device. No memory.
void decide_pair(const View& view, std::byte*, Verdicts& verdicts) {
    std::array<int, 3> running{};
    for (int index = 0; index < view.running_count; ++index) ++running[static_cast<int>(view.running[index].bound)];
    for (int index = 0; index < view.head_count; ++index) {
        const Head& head = view.heads[index];
        int& same = running[static_cast<int>(head.bound)];
        if (is_deep_enough(view, head)) {
            verdicts.reason[index] = Reason::depth;
        } else if (same > 0) {
            verdicts.reason[index] = Reason::bound_class;
        } else {
            ++same;
            verdicts.reason[index] = Reason::fits;
        }
    }
}

// FlowPrefill: best effort pauses at its next launch boundary while high priority is at work; what is in flight then is
// bounded by the depth. No memory.
void decide_gate(const View& view, std::byte*, Verdicts& verdicts) {
    for (int index = 0; index < view.head_count; ++index) {
        verdicts.reason[index] = view.high_priority_active                    ? Reason::high_priority_first
                                 : is_deep_enough(view, view.heads[index]) ? Reason::depth
                                                                              : Reason::fits;
    }
}

}  // namespace

Decide policy_of(PolicyName name) {
    static constexpr std::array<Decide, kPolicies> kDecide = {decide_interference, decide_sequential, decide_free,
                                                              decide_orion,        decide_reef,       decide_tgs,
                                                              decide_lanes,        decide_pair,       decide_gate};
    return kDecide[static_cast<std::size_t>(name)];
}

}  // namespace tierline
