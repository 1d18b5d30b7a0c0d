// Our policy: of all waiting heads together, admit the set that promises most progress, so that the sums of SM and of
// memory-bandwidth use stay within their limits and high-priority kernels keep their speed.
#include "policies.hpp"

namespace tierline {

namespace {

constexpr int kExact = 8;  // heads up to which all sets are looked at
constexpr double kUrgent = 1e6;  // strict mode, where it waits: a high-priority head outweighs any number of best-effort ones
constexpr Nanoseconds kPatience = 100 * kMicrosecond;
constexpr double kDear = 0.4;  // high-priority time lost per time of the launch
constexpr int kRecently = 10;  // times the patience of a launch: high priority that did not pause for so long will not
constexpr int kIdleDebt = 10;  // times what may be spent at once: the idle device is given away as long as that is not overdrawn
constexpr double kMostIterations = 2.0;  // one launch must not put more than this many of high priority's iterations at risk
constexpr Nanoseconds kLookAgain = 100 * kMicrosecond;  // while best effort is held between iterations
constexpr int kDrift = 8;  // predictions are trusted to an eighth of the time since they were checked

struct Sums {
    std::int64_t sm_ppm = 0;
    std::int64_t bw_ppm = 0;
};

struct Candidate {
    int head;       // index in the view
    Sums added;     // beyond what its stream's queue asks for already
    Sums running;   // what runs while it does
    double worth;
    bool alone;     // must not have company (unknown)
};

// What a stream will ask for at most from now until `horizon_ns` later, if its queue goes on as predicted. Ends are
// noticed late and predictions drift, so each kernel counts a little longer on both sides; the last one always counts.
Demand demand_within(const RunningStream& running, Nanoseconds now_ns, Nanoseconds horizon_ns) {
    const Stream& stream = *running.state;
    const Nanoseconds slack_ns = (now_ns - running.since_ns) / kDrift;
    Demand most;
    Nanoseconds clock_ns = running.since_ns;
    for (std::uint32_t index = 0; index < stream.count; ++index) {
        const Queued& entry = queued_at(stream, index);
        const Nanoseconds begins_ns = std::max(clock_ns, entry.admitted_ns);
        if (begins_ns - slack_ns > now_ns + horizon_ns) break;
        clock_ns = begins_ns + entry.demand.duration_ns;
        const bool over = clock_ns + slack_ns < now_ns && entry.demand.duration_ns > 0 && index + 1 < stream.count;
        if (!over) most = larger(most, entry.demand);
    }
    return most;
}

// All that runs, as it bears on a kernel of this length. In strict mode each stream counts with the largest of its queue.
Sums running_sums(const View& view, Nanoseconds horizon_ns) {
    Sums sums;
    for (int index = 0; index < view.running_count; ++index) {
        const RunningStream& running = view.running[index];
        const Demand demand =
            view.config->mode == Mode::strict ? running.demand : demand_within(running, view.now_ns, horizon_ns);
        sums.sm_ppm += demand.sm_ppm;
        sums.bw_ppm += demand.bw_ppm;
    }
    return sums;
}

class Grouping {
public:
    explicit Grouping(const View& view, Verdicts& verdicts) : view_(view), verdicts_(verdicts) {
        sole_client_ = view.running_count > 0 ? view.running[0].client : -1;
        for (int index = 0; index < view.running_count; ++index) {
            if (view.running[index].client != sole_client_) sole_client_ = -2;
            if (!view.running[index].known) unknown_runs_ = true;
        }
        for (int index = 0; index < view.head_count; ++index) consider(index);
    }

    void choose() {
        if (count_ <= kExact) {
            std::uint32_t best = 0;
            double best_worth = 0.0;
            for (std::uint32_t set = 1; set < (1u << count_); ++set) {
                const double worth = worth_of(set);
                if (worth > best_worth) {
                    best = set;
                    best_worth = worth;
                }
            }
            if (best == 0) best = spare();
            // While a high-priority launch finds no room, nothing new may take what it waits for.
            if (best_worth < kUrgent && urgent_waits_) return hold_for_urgent();
            for (int index = 0; index < count_; ++index) {
                if ((best >> index & 1u) != 0) admit(candidates_[index]);
            }
            if (best == 0 || count_ > 1) explain();
        } else {
            choose_greedily();
        }
    }

private:
    void consider(int index) {
        const Head& head = view_.heads[index];
        const bool alone = runs_alone(view_, head.client);
        Reason reason = Reason::none;
        if (is_deep_enough(view_, head)) {
            reason = Reason::depth;
        } else if (!head.known && !alone && head.priority == Priority::high) {
            reason = Reason::unknown_runs_alone;
            urgent_waits_ = true;
        } else if (!head.known && (!alone || (head.priority != Priority::high && view_.high_priority_active))) {
            reason = Reason::unknown_runs_alone;
        } else if (head.priority == Priority::best_effort && view_.high_priority_joined && costs_too_much(head)) {
            reason = view_.high_priority_active ? Reason::slowdown_limit : Reason::budget;
        }
        verdicts_.reason[index] = reason;
        if (reason != Reason::none || count_ == kMaxWaiters) return;
        Demand queued;
        for (int other = 0; other < view_.running_count; ++other) {
            if (view_.running[other].stream == head.stream) queued = view_.running[other].demand;
        }
        const Demand together = larger(queued, head.demand);
        Candidate& candidate = candidates_[count_++];
        candidate.head = index;
        candidate.added = {together.sm_ppm - queued.sm_ppm, together.bw_ppm - queued.bw_ppm};
        candidate.running = running_sums(view_, head.demand.duration_ns);
        candidate.alone = !head.known;
        // Each client that moves is one job at its own full speed; who waited long for its size weighs more.
        const double waited = double(view_.now_ns - head.waiting_since_ns);
        candidate.worth = 1.0 + waited / double(head.demand.duration_ns + kPatience);
        if (head.priority == Priority::high) {
            candidate.worth += kUrgent;
            urgent_waits_ = true;
        }
    }

    // What is launched cannot be called back, so best effort goes only while the account of what it costs high priority
    // allows it. Between iterations it costs nothing for certain, and a balance that is not spent is enough.
    bool costs_too_much(const Head& head) const {
        if (view_.config->mode == Mode::strict) {
            return view_.high_priority_active &&
                   view_.best_effort_in_flight_ns + head.demand.duration_ns > view_.budget_ns;
        }
        const double harm = head.kernel >= 0 ? view_.kernels[head.kernel].harm : 1.0;
        const double cost_ns = harm * double(head.demand.duration_ns);
        if (view_.high_priority_active) {
            // Dear company is put off: between two iterations the same launch costs less.
            const Nanoseconds patience_ns = view_.config->drain_after_ns;
            const bool pauses = view_.now_ns - view_.high_priority_idle_ns < kRecently * patience_ns;
            const bool dear = harm > kDear && pauses && view_.now_ns - head.waiting_since_ns < patience_ns;
            return dear || cost_ns > double(view_.may_cost_ns);
        }
        *view_.next_look_ns = std::min(*view_.next_look_ns, view_.now_ns + kLookAgain);
        // The longer high priority has been away, the less likely it comes back while this one runs.
        const double runs_ns = double(head.demand.duration_ns);
        const double away_ns = double(std::max<Nanoseconds>(0, view_.now_ns - view_.high_priority_done_ns));
        const double risked_ns = cost_ns * runs_ns / (runs_ns + away_ns + 1.0);
        const bool too_dear = view_.iteration_ns > 0 && risked_ns > kMostIterations * double(view_.iteration_ns);
        return too_dear || view_.balance_ns < -kIdleDebt * view_.may_cost_most_ns;
    }

    bool fits(const Sums& added, const Sums& running) const {
        return running.sm_ppm + added.sm_ppm <= view_.config->alpha_ppm &&
               running.bw_ppm + added.bw_ppm <= view_.config->beta_ppm;
    }

    // 0 when the set may not go together.
    double worth_of(std::uint32_t set) const {
        Sums added;
        double worth = 0.0;
        Nanoseconds longest_ns = -1;
        Sums running;  // while the longest of them does
        int client = sole_client_;
        bool any_unknown = unknown_runs_;
        for (int index = 0; index < count_; ++index) {
            if ((set >> index & 1u) == 0) continue;
            const Candidate& candidate = candidates_[index];
            const Head& head = view_.heads[candidate.head];
            if (client == -1) client = head.client;
            if (client != head.client) client = -2;
            any_unknown = any_unknown || candidate.alone;
            added.sm_ppm += candidate.added.sm_ppm;
            added.bw_ppm += candidate.added.bw_ppm;
            worth += candidate.worth;
            if (head.demand.duration_ns <= longest_ns) continue;
            longest_ns = head.demand.duration_ns;
            running = candidate.running;
        }
        if (client >= 0) return worth;  // nobody else is on the device: a client is not gated by itself
        if (any_unknown || !fits(added, running)) return 0.0;
        return worth;
    }

    // Latency mode: what fits nowhere beside busy high-priority work may go by itself, once it has waited, if the account
    // of what best effort costs covers it. 0 or a set of one.
    std::uint32_t spare() const {
        if (view_.config->mode == Mode::strict || !view_.high_priority_active || unknown_runs_) return 0;
        for (int index = 0; index < count_; ++index) {
            const Head& head = view_.heads[candidates_[index].head];
            if (candidates_[index].alone || head.priority == Priority::high) continue;
            const Nanoseconds patient_until_ns = head.waiting_since_ns + kPatience / 10 + head.demand.duration_ns;
            if (view_.now_ns < patient_until_ns) {
                *view_.next_look_ns = std::min(*view_.next_look_ns, patient_until_ns);
                continue;
            }
            return 1u << index;  // `costs_too_much` has let it through
        }
        return 0;
    }

    // Beyond eight heads: the most worthy first, among equals the one that leaves both sums most alike.
    void choose_greedily() {
        Sums added;
        Nanoseconds longest_ns = -1;
        Sums longest_running;  // while the longest of those taken does
        int client = sole_client_;
        std::array<bool, kMaxWaiters> taken{};
        while (true) {
            int best = -1;
            double best_score = -1.0;
            for (int index = 0; index < count_; ++index) {
                if (taken[index]) continue;
                const Candidate& candidate = candidates_[index];
                const Head& head = view_.heads[candidate.head];
                const Sums then{added.sm_ppm + candidate.added.sm_ppm, added.bw_ppm + candidate.added.bw_ppm};
                const bool unaccompanied = client == -1 || client == head.client;
                if (!unaccompanied && (candidate.alone || unknown_runs_)) continue;
                const Sums& running = head.demand.duration_ns > longest_ns ? candidate.running : longest_running;
                if (!unaccompanied && !fits(then, running)) continue;
                const double imbalance =
                    std::abs(double(running.sm_ppm + then.sm_ppm) - double(running.bw_ppm + then.bw_ppm)) / kWhole;
                const double score = candidate.worth - 0.5 * std::min(1.0, imbalance) + 1.0;
                if (score > best_score) {
                    best = index;
                    best_score = score;
                }
            }
            if (best < 0) return explain();
            if (best_score < kUrgent && urgent_waits_ && !urgent_goes_) return hold_for_urgent();
            urgent_goes_ = urgent_goes_ || best_score >= kUrgent;
            taken[best] = true;
            const Candidate& candidate = candidates_[best];
            const Head& head = view_.heads[candidate.head];
            if (candidate.alone) unknown_runs_ = true;
            client = client == -1 || client == head.client ? head.client : -2;
            added.sm_ppm += candidate.added.sm_ppm;
            added.bw_ppm += candidate.added.bw_ppm;
            if (head.demand.duration_ns > longest_ns) {
                longest_ns = head.demand.duration_ns;
                longest_running = candidate.running;
            }
            admit(candidate);
        }
    }

    void hold_for_urgent() {
        explain();
        for (int index = 0; index < count_; ++index) {
            const Candidate& candidate = candidates_[index];
            if (view_.heads[candidate.head].priority == Priority::high) continue;
            verdicts_.reason[candidate.head] = Reason::high_priority_first;
        }
    }

    void admit(const Candidate& candidate) {
        const Head& head = view_.heads[candidate.head];
        const bool within = sole_client_ == -1 || sole_client_ == head.client ||
                            fits(candidate.added, candidate.running);
        verdicts_.reason[candidate.head] = within ? Reason::fits : Reason::spared;
    }

    // Those that were not chosen: which of the sums keeps them out.
    void explain() {
        for (int index = 0; index < count_; ++index) {
            const Candidate& candidate = candidates_[index];
            Reason& reason = verdicts_.reason[candidate.head];
            if (reason != Reason::none) continue;
            const Sums& running = candidate.running;
            reason = candidate.alone || unknown_runs_ ? Reason::unknown_runs_alone
                     : running.bw_ppm + candidate.added.bw_ppm > view_.config->beta_ppm ? Reason::bw_limit
                                                                                       : Reason::sm_limit;
        }
    }

    const View& view_;
    Verdicts& verdicts_;
    std::array<Candidate, kMaxWaiters> candidates_;
    int count_ = 0;
    int sole_client_;           // whose work alone runs; -1 nobody's, -2 several clients'
    bool unknown_runs_ = false;
    bool urgent_waits_ = false;  // a high-priority head wants room
    bool urgent_goes_ = false;
};

}  // namespace

void decide_interference(const View& view, std::byte*, Verdicts& verdicts) {
    if (view.head_count == 0) return;
    Grouping grouping(view, verdicts);
    grouping.choose();
}

}  // namespace tierline
