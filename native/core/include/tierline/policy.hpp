// A policy of the kernel tier: pure, no allocation; it proposes, the admission disposes.
#pragma once

#include "tierline/region.hpp"

namespace tierline {

// The oldest waiting launch of one stream.
struct Head {
    int client;
    int stream;
    int kernel;
    Priority priority;
    Demand demand;
    bool known;
    BoundClass bound;
    Nanoseconds waiting_since_ns;
};

// A stream with launches in flight. It runs one kernel at a time, so `demand` is the largest among its queue.
struct RunningStream {
    int client;
    int stream;
    Priority priority;
    Demand demand;
    bool known;
    BoundClass bound;      // of the kernel at the head of its queue
    const Stream* state;   // its queue
    int queued;
    Nanoseconds queued_ns; // predicted
    Nanoseconds since_ns;  // admission or start of the kernel at the head
};

struct View {
    Nanoseconds now_ns;
    const Config* config;
    const Client* clients;          // kMaxClients
    const Head* heads;
    int head_count;
    const RunningStream* running;
    int running_count;
    bool high_priority_active;      // some high-priority client has work in flight, waits, or is within an iteration
    Nanoseconds budget_ns;          // how much best-effort work may be in flight beside high-priority work
    Nanoseconds best_effort_in_flight_ns;
    Nanoseconds iteration_ns;       // the shortest of the high-priority clients, 0 = unknown
    Nanoseconds high_priority_done_ns;  // when work of high priority was last seen to end
    Nanoseconds high_priority_idle_ns;  // when high priority was last seen without work
    bool high_priority_joined;      // best effort is not by itself even while nothing else is in flight
    Nanoseconds may_cost_ns;        // high-priority time that best effort may still cost, less what is in flight
    Nanoseconds may_cost_most_ns;   // and at once
    Nanoseconds balance_ns;         // of the account, what is in flight not counted
    const Kernel* kernels;          // the table
    Nanoseconds* next_look_ns;      // the policy may ask to be called again at that time
};

// One verdict a head, in the order of `View::heads`: an admitting reason, or why it waits.
struct Verdicts {
    std::array<Reason, kMaxWaiters> reason;
};

// `memory` is the policy's own block in the region (kPolicyMemoryBytes, zero at the start).
using Decide = void (*)(const View& view, std::byte* memory, Verdicts& verdicts);

Decide policy_of(PolicyName name);

}  // namespace tierline
