// Over 400 lines: the region's state changes here and nowhere else; what is computed and what is kept have files of their own.
#include "tierline/admission.hpp"

#include "correction.hpp"
#include "losses.hpp"
#include "running_set.hpp"
#include "tierline/policy.hpp"

#include <algorithm>
#include <limits>

namespace tierline {

namespace {

constexpr std::uint64_t kAll = std::numeric_limits<std::uint64_t>::max();  // every launch of a stream
constexpr Nanoseconds kNever = std::numeric_limits<Nanoseconds>::max();
constexpr Nanoseconds kDefaultBudget = 100 * kMicrosecond;  // until an iteration of high priority was seen
// A high-priority client that launches again within this time is in one iteration still, though nothing is in flight.
constexpr Nanoseconds kHostGap = 200 * kMicrosecond;
constexpr double kIterationMemory = 0.2;

bool in_iteration(const Client& client, Nanoseconds now_ns) {
    if (is_active(client) || client.waiting > 0) return true;
    return client.iteration_began_ns != 0 && now_ns - client.last_done_ns < kHostGap;
}

// A client of high priority may want the device at any time: best effort must not run far ahead of it.
bool high_priority_joined(const Region& region, int client) {
    for (int slot = 0, left = region.clients_joined; left > 0 && slot < kMaxClients; ++slot) {
        const Client& other = region.clients[slot];
        if (other.state != 1) continue;
        --left;
        if (slot != client && other.priority == Priority::high) return true;
    }
    return false;
}

// Old launches have the device drained for them, except under policies that starve best effort by design.
bool drains(const Config& config) {
    return config.policy == PolicyName::interference || config.policy == PolicyName::lanes ||
           config.policy == PolicyName::pair;
}

// Is the device drained for a launch that waits for this? Not for what waits for its own stream's depth, nor, in latency mode,
// for what would cost high priority too much: it would go none the sooner if all other best effort stood still.
bool has_a_claim(Reason reason, Mode mode) {
    if (admits(reason) || reason == Reason::depth) return false;
    return mode == Mode::strict || (reason != Reason::slowdown_limit && reason != Reason::budget);
}

bool high_priority_never_waits(const Config& config) {
    switch (config.policy) {
        case PolicyName::interference: return config.mode == Mode::latency;
        case PolicyName::sequential: return false;
        default: return true;
    }
}

int wait_bucket(Nanoseconds wait_ns) {
    if (wait_ns <= 0) return 0;
    return std::min(kWaitBuckets - 1, 63 - __builtin_clzll(static_cast<unsigned long long>(wait_ns)));
}

bool exceeds(const Region& region) {
    return region.sm_ppm > region.config.alpha_ppm || region.bw_ppm > region.config.beta_ppm;
}

Demand demand_of(const Region& region, int row) {
    if (row >= 0) return region.kernels[row].demand;
    return {kWhole, kWhole, region.config.device.sms, 0};
}

// Puts the launch in flight; every admission passes here.
Ticket let_go(Region& region, int client_slot, int stream_slot, int row, const Demand& demand, Reason reason,
              bool track, bool learn, Nanoseconds now_ns) {
    Client& client = region.clients[client_slot];
    Stream& stream = region.streams[stream_slot];
    const bool accompanied = others_active(region, client_slot);
    const std::uint64_t key = row >= 0 ? region.kernels[row].key : 0;
    const std::uint64_t seq = ++stream.launched;
    if (client.priority == Priority::best_effort) {
        cast_shadow(region, stream_slot, seq, row, stream.queued_ns, demand.duration_ns, now_ns);
    }
    push(region, stream_slot, {seq, now_ns, demand, row, accompanied ? 1 : 0});
    update_starvation(client, now_ns);
    stream.untracked = track || learn ? 0 : stream.untracked + 1;
    if (accompanied && exceeds(region)) ++client.statistics.excess;
    update_contention(region);
    write_trace(region, 2, client_slot, stream_slot, key, reason, now_ns);
    Ticket ticket;
    ticket.reason = reason;
    ticket.stream = stream_slot;
    ticket.seq = seq;
    ticket.track = track || learn;
    ticket.learn = learn;
    return ticket;
}

}  // namespace

// What a policy sees, and whose launches they are. Too large for the stack of a host program's thread.
struct Admission::Scene {
    std::array<Head, kMaxWaiters> heads;
    std::array<int, kMaxWaiters> waiter;  // of each head
    std::array<RunningStream, kMaxStreams> running;
    View view;
    Verdicts verdicts;
};

Admission::Admission(Region& region) : region_(region), scene_(std::make_unique<Scene>()) {}
Admission::~Admission() = default;

// Fills the scene with all that a policy may see at this moment.
void Admission::look(Nanoseconds now_ns) {
    Region& region = region_;
    Scene& scene = *scene_;
    int heads = 0;
    for (int index = 0, left = region.waiting; left > 0 && index < kMaxWaiters; ++index) {
        const Waiter& waiter = region.waiters[index];
        if (waiter.state != 1) continue;
        --left;
        int same = 0;  // one head a stream, the oldest
        while (same < heads && scene.heads[same].stream != waiter.stream) ++same;
        if (same < heads && scene.heads[same].waiting_since_ns <= waiter.since_ns) continue;
        const Kernel* kernel = waiter.kernel >= 0 ? &region.kernels[waiter.kernel] : nullptr;
        scene.heads[same] = {waiter.client,
                             waiter.stream,
                             waiter.kernel,
                             region.clients[waiter.client].priority,
                             demand_of(region, waiter.kernel),
                             kernel != nullptr && kernel->source > Source::learning,
                             kernel != nullptr ? kernel->bound : BoundClass::unknown,
                             waiter.since_ns};
        scene.waiter[same] = index;
        if (same == heads) ++heads;
    }
    int running = 0;
    Nanoseconds best_effort_ns = 0;
    for_each_busy_stream(region, [&](int slot) {
        const Stream& stream = region.streams[slot];
        const Queued& head = queued_at(stream, 0);
        const Kernel* kernel = head.kernel >= 0 ? &region.kernels[head.kernel] : nullptr;
        const Priority priority = region.clients[stream.client].priority;
        if (priority == Priority::best_effort) best_effort_ns += stream.queued_ns;
        scene.running[running++] = {stream.client,
                                    slot,
                                    priority,
                                    stream.peak,
                                    kernel == nullptr || kernel->source > Source::learning,
                                    kernel != nullptr ? kernel->bound : BoundClass::unknown,
                                    &stream,
                                    static_cast<int>(stream.count),
                                    stream.queued_ns,
                                    std::max(head.admitted_ns, stream.last_done_ns)};
    });
    Nanoseconds iteration_ns = 0;
    bool high_active = false;
    bool high_joined = false;
    Nanoseconds high_done_ns = 0;
    for (int slot = 0, left = region.clients_joined; left > 0 && slot < kMaxClients; ++slot) {
        const Client& client = region.clients[slot];
        if (client.state != 1) continue;
        --left;
        if (client.priority != Priority::high) continue;
        high_joined = true;
        high_done_ns = std::max(high_done_ns, client.last_done_ns);
        if (client.iteration_ns > 0 && (iteration_ns == 0 || client.iteration_ns < iteration_ns)) {
            iteration_ns = client.iteration_ns;
        }
        if (!in_iteration(client, now_ns)) continue;
        high_active = true;
        if (!is_active(client) && client.waiting == 0) {
            region.next_look_ns = std::min(region.next_look_ns, client.last_done_ns + kHostGap);
        }
    }
    credit_idle(region, high_active, now_ns);
    const Config& config = region.config;
    Nanoseconds budget_ns = config.budget_ns;
    if (budget_ns == 0) {
        budget_ns = iteration_ns == 0 ? kDefaultBudget : static_cast<Nanoseconds>(config.budget_share * iteration_ns);
    }
    scene.view = {now_ns,
                  &config,
                  region.clients.data(),
                  scene.heads.data(),
                  heads,
                  scene.running.data(),
                  running,
                  high_active,
                  budget_ns,
                  best_effort_ns,
                  iteration_ns,
                  high_done_ns,
                  region.losses.idle_ns,
                  high_joined,
                  uncommitted(region, now_ns),
                  most_at_once(region, iteration_ns),
                  region.losses.balance_ns,
                  region.kernels.data(),
                  &region.next_look_ns};
}

namespace {

// Would the sums stay within the limits? What nobody else accompanies always fits: a client is not gated by itself.
Reason limits_hold(const Region& region, const Head& head) {
    if (!others_active(region, head.client)) return Reason::alone;
    const Stream& stream = region.streams[head.stream];
    const Demand peak = larger(stream.peak, head.demand);
    if (region.sm_ppm - stream.peak.sm_ppm + peak.sm_ppm > region.config.alpha_ppm) return Reason::sm_limit;
    if (region.bw_ppm - stream.peak.bw_ppm + peak.bw_ppm > region.config.beta_ppm) return Reason::bw_limit;
    return Reason::fits;
}

// Whom a waiting launch waits for: the client with most of the device, else one of high priority that may want it.
int blame(const Region& region, int client) {
    int worst = -1;
    std::int64_t most = -1;
    for_each_busy_stream(region, [&](int slot) {
        const Stream& stream = region.streams[slot];
        if (stream.client == client) return;
        const std::int64_t used = std::int64_t{stream.peak.sm_ppm} + stream.peak.bw_ppm;
        if (used > most) {
            most = used;
            worst = stream.client;
        }
    });
    for (int slot = 0, left = region.clients_joined; worst < 0 && left > 0 && slot < kMaxClients; ++slot) {
        if (region.clients[slot].state != 1) continue;
        --left;
        if (slot != client && region.clients[slot].priority == Priority::high) worst = slot;
    }
    return worst;
}

void settle_blame(Region& region, Waiter& waiter, Nanoseconds now_ns) {
    if (waiter.blamed >= 0) {
        region.waited_for_ns[waiter.client][waiter.blamed] += std::max<Nanoseconds>(0, now_ns - waiter.blamed_since_ns);
    }
    waiter.blamed_since_ns = now_ns;
}

// A wait is over.
void count_wait(Region& region, const Waiter& waiter, Nanoseconds now_ns) {
    ClientStatistics& statistics = region.clients[waiter.client].statistics;
    const Nanoseconds wait_ns = now_ns - waiter.since_ns;
    if (wait_ns == 0) {
        ++statistics.at_once;
        return;
    }
    ++statistics.waited;
    statistics.wait_ns += wait_ns;
    statistics.longest_wait_ns = std::max(statistics.longest_wait_ns, wait_ns);
    ++statistics.waits.count[wait_bucket(wait_ns)];
    if (waiter.kernel < 0) return;
    ++region.kernels[waiter.kernel].waited;
    region.kernels[waiter.kernel].wait_ns += wait_ns;
}

}  // namespace

int Admission::join(std::string_view label, Priority priority, std::int64_t memory_cap_bytes, int pid,
                    Nanoseconds now_ns) {
    int slot = -1;
    for (int index = 0; index < kMaxClients; ++index) {
        if (region_.clients[index].state == 0) {
            slot = index;
            break;
        }
        if (region_.clients[index].state == 2 && slot < 0) slot = index;
    }
    if (slot < 0) return -1;
    Client& client = region_.clients[slot];
    client = Client{};
    const std::size_t length = std::min(label.size(), client.label.size() - 1);
    std::copy_n(label.begin(), length, client.label.begin());
    client.priority = priority;
    client.memory_cap_bytes = memory_cap_bytes;
    client.pid = pid;
    client.last_done_ns = now_ns;
    client.state = 1;
    ++region_.clients_joined;
    for (int other = 0; other < kMaxClients; ++other) {
        region_.waited_for_ns[slot][other] = 0;
        region_.waited_for_ns[other][slot] = 0;
    }
    return slot;
}

void Admission::leave(int slot, Nanoseconds now_ns) {
    Client& client = region_.clients[slot];
    if (client.state != 1) return;
    for (Waiter& waiter : region_.waiters) {
        if (waiter.state == 0 || waiter.client != slot) continue;
        if (waiter.state == 1) {
            --region_.waiting;
            --client.waiting;
        }
        waiter.state = 0;
    }
    for (int index = 0; index < region_.streams_used; ++index) {
        Stream& stream = region_.streams[index];
        if (stream.client != slot) continue;
        if (stream.count > 0) pop(region_, index, kAll, now_ns);
        lift_shadows(region_, index, stream.launched, now_ns);
        stream.client = -1;
    }
    for (Waiter& waiter : region_.waiters) {
        if (waiter.state != 1 || waiter.blamed != slot) continue;
        settle_blame(region_, waiter, now_ns);
        waiter.blamed = -1;  // the slot may be another client's before anybody looks again
    }
    update_starvation(client, now_ns);
    client.memory_bytes = 0;
    client.state = 2;
    --region_.clients_joined;
    update_contention(region_);
}

int Admission::open_stream(int client, std::uint64_t id) {
    int free_slot = -1;
    for (int index = 0; index < region_.streams_used; ++index) {
        const Stream& stream = region_.streams[index];
        if (stream.client == client && stream.id == id) return index;
        if (stream.client < 0 && free_slot < 0) free_slot = index;
    }
    if (free_slot < 0) {
        if (region_.streams_used == kMaxStreams) return -1;
        free_slot = region_.streams_used;
    }
    Stream& stream = region_.streams[free_slot];
    stream.id = id;
    stream.launched = stream.done = 0;
    stream.last_done_ns = 0;
    stream.peak = {};
    stream.queued_ns = 0;
    stream.first = stream.count = 0;
    stream.untracked = 0;
    stream.client = client;
    if (free_slot == region_.streams_used) ++region_.streams_used;
    return free_slot;
}

void Admission::close_stream(int slot, Nanoseconds now_ns) {
    if (slot < 0) return;
    Stream& stream = region_.streams[slot];
    if (stream.client < 0) return;
    if (stream.count > 0) completed(slot, stream.launched, now_ns);
    for (const Waiter& waiter : region_.waiters) {
        if (waiter.state != 0 && waiter.stream == slot) return;  // a launch into it still waits: it stays
    }
    stream.client = -1;
}

Ticket Admission::request(const Request& request, Nanoseconds now_ns) {
    Client& client = region_.clients[request.client];
    ClientStatistics& statistics = client.statistics;
    Ticket ticket;
    // It left while this thread was on its way here; by now its slot, or its stream's, may be somebody else's.
    if (client.state != 1 || (request.stream >= 0 && region_.streams[request.stream].client != request.client)) {
        ticket.reason = Reason::overflowed;
        return ticket;
    }
    ++statistics.launches;
    if (request.exempt || request.stream < 0) {
        ++(request.exempt ? statistics.bypassed : statistics.overflowed);
        if (client.priority == Priority::best_effort) {
            cast_shadow(region_, -1, 0, request.kernel, 0, demand_of(region_, request.kernel).duration_ns, now_ns);
        }
        ticket.reason = request.exempt ? Reason::bypassed : Reason::overflowed;
        return ticket;
    }
    if (client.iteration_began_ns == 0) client.iteration_began_ns = std::max<Nanoseconds>(1, now_ns);
    const Demand demand = demand_of(region_, request.kernel);
    const bool known = request.kernel < 0 || is_known(request.kernel);
    if (request.kernel >= 0) ++region_.kernels[request.kernel].launches;
    const Config& config = region_.config;
    const bool alone = !others_busy(region_, request.client) &&
                       (client.priority == Priority::high || config.policy == PolicyName::free ||
                        !high_priority_joined(region_, request.client));
    if (alone) {
        ++statistics.at_once;
        return let_go(region_, request.client, request.stream, request.kernel, demand, Reason::alone, false, !known,
                      now_ns);
    }
    if (config.policy == PolicyName::free) {
        ++statistics.at_once;
        return let_go(region_, request.client, request.stream, request.kernel, demand, Reason::ungated,
                      client.priority == Priority::best_effort, false, now_ns);
    }
    if (client.priority == Priority::high && high_priority_never_waits(config)) {
        ++statistics.at_once;
        // Nothing new is let in beside what is unknown, so sooner or later it runs by itself and can be timed.
        const bool learn = !known && !others_active(region_, request.client);
        return let_go(region_, request.client, request.stream, request.kernel, demand, Reason::never_waits, false,
                      learn, now_ns);
    }
    int slot = 0;
    while (slot < kMaxWaiters && region_.waiters[slot].state != 0) ++slot;
    if (slot == kMaxWaiters) {
        ++statistics.overflowed;
        ticket.reason = Reason::overflowed;
        return ticket;
    }
    Waiter& waiter = region_.waiters[slot];
    waiter.client = request.client;
    waiter.stream = request.stream;
    waiter.kernel = request.kernel;
    waiter.reason = Reason::none;
    waiter.blamed = -1;
    waiter.blamed_since_ns = now_ns;
    waiter.key = request.kernel >= 0 ? region_.kernels[request.kernel].key : 0;
    waiter.serial = ++region_.waits;
    waiter.seq = 0;
    waiter.demand = demand;
    waiter.since_ns = now_ns;
    waiter.state = 1;
    ++region_.waiting;
    ++client.waiting;
    update_starvation(client, now_ns);
    ticket.waiter = slot;
    return ticket;
}

bool Admission::completed(int slot, std::uint64_t seq, Nanoseconds now_ns) {
    Stream& stream = region_.streams[slot];
    if (stream.client < 0 || stream.count == 0) return false;
    Client& client = region_.clients[stream.client];
    const Demand own = queued_at(stream, 0).demand;
    const int row = queued_at(stream, 0).kernel;
    const std::uint64_t key = row >= 0 ? region_.kernels[row].key : 0;
    const Ended ended = pop(region_, slot, seq, now_ns);
    if (ended.count == 0) return false;
    update_starvation(client, now_ns);
    if (ended.clear) {
        client.statistics.predicted_busy_ns += ended.predicted_ns;
        client.statistics.observed_busy_ns += ended.observed_ns;
    }
    if (ended.company != 0) client.statistics.corun_ns += ended.observed_ns;
    if (client.priority == Priority::high) {
        charge_losses(region_, client, ended, now_ns);
    } else {
        lift_shadows(region_, slot, stream.done, now_ns);
    }
    correct(region_, ended, own, slot);
    write_trace(region_, 3, stream.client, slot, key, Reason::none, now_ns);
    update_contention(region_);
    return region_.waiting > 0;
}

int Admission::decide(Nanoseconds now_ns, int* admitted, int capacity) {
    int count = 0;
    // One round may make room for another policy decision (a turn that passes on): repeat until nothing moves.
    while (region_.waiting > 0 && count < capacity) {
        region_.next_look_ns = kNever;
        look(now_ns);
        Scene& scene = *scene_;
        Verdicts& verdicts = scene.verdicts;
        const Config& config = region_.config;
        policy_of(config.policy)(scene.view, region_.policy_memory.data(), verdicts);
        int oldest = -1;
        for (int index = 0; drains(config) && index < scene.view.head_count; ++index) {
            if (!has_a_claim(verdicts.reason[index], config.mode)) continue;
            if (oldest < 0 || scene.heads[index].waiting_since_ns < scene.heads[oldest].waiting_since_ns) oldest = index;
        }
        const bool draining = oldest >= 0 && now_ns - scene.heads[oldest].waiting_since_ns >= config.drain_after_ns;
        // In latency mode best effort has no claim on high priority's time, however long it waits (but `max_wait_ns`).
        const bool held_for_high = config.mode == Mode::latency && scene.view.high_priority_joined;
        int admitted_now = 0;
        for (int index = 0; index < scene.view.head_count && count < capacity; ++index) {
            const Head& head = scene.heads[index];
            Waiter& waiter = region_.waiters[scene.waiter[index]];
            Reason reason = verdicts.reason[index];
            const bool unaccompanied = !others_active(region_, head.client);
            if (draining && index != oldest && admits(reason)) reason = Reason::draining;
            if (draining && index == oldest && unaccompanied && !held_for_high) reason = Reason::alone;
            if (config.policy == PolicyName::interference && config.mode == Mode::strict && admits(reason)) {
                // Proposals of one round are checked one after the other against what the earlier ones took.
                const Reason limit = limits_hold(region_, head);
                if (!admits(limit)) reason = limit;
            }
            if (now_ns - waiter.since_ns >= config.max_wait_ns && !admits(reason)) {
                reason = Reason::forced;
                ++region_.clients[head.client].statistics.forced;
            }
            settle_blame(region_, waiter, now_ns);
            if (!admits(reason)) {
                if (waiter.reason == Reason::none) {
                    write_trace(region_, 1, head.client, head.stream, waiter.key, reason, now_ns);
                }
                waiter.reason = reason;
                waiter.blamed = blame(region_, head.client);
                continue;
            }
            --region_.waiting;
            --region_.clients[head.client].waiting;
            const bool learn = !head.known && head.kernel >= 0 && unaccompanied;
            const Ticket ticket = let_go(region_, head.client, head.stream, head.kernel, head.demand, reason,
                                         head.priority == Priority::best_effort, learn, now_ns);
            waiter.seq = ticket.seq;
            waiter.reason = reason;
            waiter.demand = head.demand;
            waiter.state = learn ? 3 : 2;
            count_wait(region_, waiter, now_ns);
            admitted[count++] = scene.waiter[index];
            ++admitted_now;
        }
        if (admitted_now == 0) break;
    }
    update_contention(region_);
    return count;
}

Nanoseconds Admission::deadline_ns() const {
    if (region_.waiting == 0) return kNever;
    Nanoseconds deadline_ns = region_.next_look_ns;
    const Config& config = region_.config;
    for (int index = 0, left = region_.waiting; left > 0 && index < kMaxWaiters; ++index) {
        const Waiter& waiter = region_.waiters[index];
        if (waiter.state != 1) continue;
        --left;
        deadline_ns = std::min(deadline_ns, waiter.since_ns + config.max_wait_ns);
        // At the time of draining nothing is admitted that is not admitted by an end anyhow; no deadline for it.
    }
    return deadline_ns;
}

Ticket Admission::take(int slot, Nanoseconds now_ns) {
    Waiter& waiter = region_.waiters[slot];
    Ticket ticket;
    ticket.stream = waiter.stream;
    if (waiter.state == 1) {  // its thread gave up waiting
        Client& client = region_.clients[waiter.client];
        --region_.waiting;
        --client.waiting;
        ++client.statistics.forced;
        settle_blame(region_, waiter, now_ns);
        count_wait(region_, waiter, now_ns);
        ticket = let_go(region_, waiter.client, waiter.stream, waiter.kernel, demand_of(region_, waiter.kernel),
                        Reason::forced, client.priority == Priority::best_effort, false, now_ns);
    } else {
        const bool best_effort = region_.clients[waiter.client].priority == Priority::best_effort;
        ticket.reason = waiter.reason;
        ticket.seq = waiter.seq;
        ticket.learn = waiter.state == 3;
        ticket.track = best_effort || ticket.learn;
    }
    waiter.state = 0;
    return ticket;
}

bool Admission::iteration_ended(int slot, Nanoseconds now_ns) {
    Client& client = region_.clients[slot];
    if (client.iteration_began_ns == 0) return false;
    const Nanoseconds took_ns = now_ns - client.iteration_began_ns;
    client.iteration_began_ns = 0;
    client.iteration_ns = client.iteration_ns == 0
                              ? took_ns
                              : client.iteration_ns +
                                    static_cast<Nanoseconds>(kIterationMemory * double(took_ns - client.iteration_ns));
    return region_.waiting > 0;
}

bool Admission::reserve_memory(int slot, std::int64_t bytes) {
    Client& client = region_.clients[slot];
    if (client.memory_cap_bytes > 0 && client.memory_bytes + bytes > client.memory_cap_bytes) {
        ++client.statistics.denied_allocations;
        return false;
    }
    client.memory_bytes += bytes;
    return true;
}

void Admission::release_memory(int slot, std::int64_t bytes) {
    Client& client = region_.clients[slot];
    client.memory_bytes = std::max<std::int64_t>(0, client.memory_bytes - bytes);
}

}  // namespace tierline
