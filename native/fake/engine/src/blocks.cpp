// Residency: which blocks are on which SMs. The block scheduler follows the rules measured by Amert et al. (RTSS'17):
// kernels at the front end are served by priority, then by arrival; the head of the line takes what fits and, while it
// still has blocks left, nobody behind it on the same SMs starts; blocks keep their place until they end.
//
// Blocks that start together and move alike are one cohort. A kernel of many waves would cost an event a wave, so a
// cohort may stand for several rounds of its SMs; when a more urgent kernel wants the place, the rounds not yet begun
// go back (`truncate`), and what is then in flight ends staggered, as it does on a device after a few waves.
#include <algorithm>
#include <cmath>
#include <tuple>

#include "device_state.hpp"

namespace tierline::fake {
namespace {

constexpr double stagger_after_rounds = 4;   // from then on the blocks of a cohort are taken as out of step
constexpr int stagger_parts = 4;
constexpr int cohorts_per_kernel = 6;        // beyond that, neighbours whose ends are nearest are joined

// Makes `sm` the start of a run; gives that run's index.
int split_at(DeviceState& s, int sm) {
    int i = 0;
    while (i < s.run_count && s.runs[i].hi <= sm) ++i;
    if (i == s.run_count || s.runs[i].lo == sm) return i;
    for (int j = s.run_count; j > i; --j) s.runs[j] = s.runs[j - 1];
    ++s.run_count;
    s.runs[i].hi = sm;
    s.runs[i + 1].lo = sm;
    return i + 1;
}

bool alike(const Run& a, const Run& b) {
    return a.registers == b.registers && a.shared == b.shared && a.threads == b.threads && a.blocks == b.blocks;
}

void merge_runs(DeviceState& s) {
    int kept = 0;
    for (int i = 1; i < s.run_count; ++i) {
        if (alike(s.runs[kept], s.runs[i])) s.runs[kept].hi = s.runs[i].hi;
        else s.runs[++kept] = s.runs[i];
    }
    s.run_count = kept + 1;
}

void add_cohort(DeviceState& s, int op_index, int lo, int hi, int per_sm, double rounds) {
    Cohort& c = s.cohorts[s.cohort_count++];
    c = Cohort{};
    c.op = op_index;
    c.lo = lo;
    c.hi = hi;
    c.per_sm = per_sm;
    c.rounds = c.left = rounds;
    c.end_ns = never;
    ++s.ops[op_index].cohorts;
    occupy(s, c, 1);
}

int fit(const DeviceSpec& d, const KernelEntry& e, const Run& r) {
    int n = std::min(d.blocks_per_sm - r.blocks, (d.threads_per_sm - r.threads) / e.block_threads);
    if (n > 0 && e.block_registers > 0) n = std::min(n, (d.registers_per_sm - r.registers) / e.block_registers);
    if (n > 0 && e.block_shared > 0) n = std::min(n, (d.shared_bytes_per_sm - r.shared) / e.block_shared);
    return std::max(n, 0);
}

struct Placement {
    int lo, hi, fits, per_sm, extra;       // `extra`: this many SMs from `lo` take one block more
};

// Spreads `blocks` (fewer than fit) one a SM at a time, emptiest SMs first.
void spread(Placement* places, int count, const int* used_threads, std::int64_t blocks) {
    int order[max_sms + 1];
    for (int i = 0; i < count; ++i) order[i] = i;
    std::sort(order, order + count, [&](int a, int b) {
        return used_threads[a] != used_threads[b] ? used_threads[a] < used_threads[b] : a < b;
    });
    while (blocks > 0) {
        for (int i = 0; i < count && blocks > 0; ++i) {
            Placement& p = places[order[i]];
            if (p.per_sm == p.fits) continue;
            const int width = p.hi - p.lo;
            if (blocks >= width) ++p.per_sm;
            else p.extra = static_cast<int>(blocks);
            blocks -= std::min<std::int64_t>(blocks, width);
        }
    }
}

void place(DeviceState& s, int op_index) {
    Op& op = s.ops[op_index];
    const Stream& stream = s.streams[op.stream];
    const KernelEntry& e = s.kernels[op.kernel];
    const bool whole = stream.first_sm == 0 && stream.end_sm == s.spec.sms;
    if (!whole) {
        split_at(s, stream.first_sm);
        split_at(s, stream.end_sm);
    }
    Placement places[max_sms + 1];
    int used_threads[max_sms + 1];
    int count = 0;
    std::int64_t total = 0;
    for (int i = 0; i < s.run_count; ++i) {
        const Run& r = s.runs[i];
        if (r.lo < stream.first_sm || r.hi > stream.end_sm) continue;
        const int n = fit(s.spec, e, r);
        if (n == 0) continue;
        used_threads[count] = r.threads;
        places[count++] = {r.lo, r.hi, n, 0, 0};
        total += std::int64_t{n} * (r.hi - r.lo);
    }
    if (!whole) merge_runs(s);
    if (total == 0 || (e.spec.cooperative && total < op.unstarted)) return;

    double rounds = 1;
    if (op.unstarted >= total) {
        for (int i = 0; i < count; ++i) places[i].per_sm = places[i].fits;
        // Rounds that these places will surely get even if the kernel soon has all places of its SMs; what others hold now
        // may become free at any time. The last rounds are always dealt out one by one, so that the tail is real.
        const std::int64_t even = op.unstarted / (std::int64_t{e.occupancy} * (stream.end_sm - stream.first_sm)) - 1;
        if (even >= 3 && !op.spinning) rounds = double(even);
    } else {
        spread(places, count, used_threads, op.unstarted);
    }
    for (int i = 0; i < count; ++i) {
        Placement& p = places[i];
        while (p.extra == 0 && i + 1 < count && places[i + 1].extra == 0 && places[i + 1].lo == p.hi &&
               places[i + 1].per_sm == p.per_sm) {
            p.hi = places[++i].hi;         // neighbours that take the same move as one
        }
        for (const auto& [lo, hi, n] :
             {std::tuple{p.lo, p.lo + p.extra, p.per_sm + 1}, std::tuple{p.lo + p.extra, p.hi, p.per_sm}}) {
            if (lo == hi || n == 0) continue;
            if (s.cohort_count == max_cohorts) return;   // the rest starts when places are free again
            if (op.start_ns < 0) op.start_ns = s.now_ns - s.spec.ramp_ns;
            add_cohort(s, op_index, lo, hi, n, rounds);
            const std::int64_t blocks = std::int64_t{n} * (hi - lo);
            op.unstarted -= blocks * static_cast<std::int64_t>(rounds);
            op.resident += blocks;
            s.rates_due = true;
        }
    }
}

// Gives the rounds that a cohort has not begun back to its kernel. Needs progress(s) up to now.
void truncate(DeviceState& s, int index) {
    Cohort& c = s.cohorts[index];
    Op& op = s.ops[c.op];
    const std::int64_t blocks = std::int64_t{c.per_sm} * (c.hi - c.lo);
    if (c.rounds - c.left < stagger_after_rounds) {
        const double back = std::floor(c.left);          // still in step: the round under way ends as one
        if (back < 1) return;
        if (c.left == back) {                            // just at the boundary: the next round has begun
            if (back < 2) return;
            op.unstarted += static_cast<std::int64_t>(back - 1) * blocks;
            c.left = c.rounds = 1;
        } else {
            op.unstarted += static_cast<std::int64_t>(back) * blocks;
            c.left -= back;
            c.rounds = 1;
        }
    } else {
        // Out of step: at any time the blocks in flight have half a round left on average, spread evenly over 0..1.
        const double back = std::floor((c.left - 0.5) * double(blocks));
        if (back < 1) return;
        op.unstarted += static_cast<std::int64_t>(back);
        const double mean = c.left - back / double(blocks);
        const int lo = c.lo, width = c.hi - c.lo;
        const int parts =
            width >= 4 * stagger_parts && s.cohort_count + stagger_parts - 1 <= max_cohorts ? stagger_parts : 1;
        c.rounds = 1;
        c.left = mean / parts;
        c.hi = lo + width / parts;
        for (int p = 1; p < parts; ++p) {
            Cohort& d = s.cohorts[s.cohort_count++];
            d = s.cohorts[index];
            d.lo = lo + width * p / parts;
            d.hi = lo + width * (p + 1) / parts;
            d.left = mean * (2 * (p + 0.5)) / parts;
            ++op.cohorts;
        }
        if (parts == 1) s.cohorts[index].left = mean;
    }
    s.rates_due = true;
}

// A kernel that is often interrupted falls into many small cohorts, each with events of its own. Joining two neighbours
// keeps the work that is left (the mean of their rounds) and gives up only when exactly each place becomes free.
void join_cohorts(DeviceState& s, int op_index) {
    while (s.ops[op_index].cohorts > cohorts_per_kernel) {
        int mine[max_cohorts];
        int count = 0;
        for (int i = 0; i < s.cohort_count; ++i)
            if (s.cohorts[i].op == op_index) mine[count++] = i;
        std::sort(mine, mine + count,
                  [&](int a, int b) { return std::tie(s.cohorts[a].lo, a) < std::tie(s.cohorts[b].lo, b); });
        int best = -1;
        double nearest = 0;
        for (int i = 0; i + 1 < count; ++i) {
            const Cohort &a = s.cohorts[mine[i]], &b = s.cohorts[mine[i + 1]];
            const double apart = std::fabs(a.left - b.left);
            if (a.hi != b.lo || a.per_sm != b.per_sm || (best >= 0 && apart >= nearest)) continue;
            best = i;
            nearest = apart;
        }
        if (best < 0) return;
        Cohort &a = s.cohorts[mine[best]], &b = s.cohorts[mine[best + 1]];
        const double share = double(b.hi - b.lo) / (b.hi - a.lo);
        a.left += share * (b.left - a.left);
        a.rounds += share * (b.rounds - a.rounds);
        a.hi = b.hi;
        s.cohorts[mine[best + 1]] = s.cohorts[--s.cohort_count];
        --s.ops[op_index].cohorts;
        s.rates_due = true;
    }
}

}  // namespace

void clear_runs(DeviceState& s) {
    s.run_count = 1;
    s.runs[0] = Run{0, s.spec.sms, 0, 0, 0, 0};
}

void occupy(DeviceState& s, const Cohort& c, int sign) {
    if (c.lo == c.hi) return;
    const KernelEntry& e = s.kernels[s.ops[c.op].kernel];
    const int n = sign * c.per_sm;
    const int from = split_at(s, c.lo);
    const int to = split_at(s, c.hi);
    for (int i = from; i < to; ++i) {
        Run& r = s.runs[i];
        r.registers += n * e.block_registers;
        r.shared += n * e.block_shared;
        r.threads += n * e.block_threads;
        r.blocks += n;
    }
    merge_runs(s);
}

void remove_cohort(DeviceState& s, int index) {
    Cohort& c = s.cohorts[index];
    Op& op = s.ops[c.op];
    if (!c.paused) occupy(s, c, -1);
    op.resident -= std::int64_t{c.per_sm} * (c.hi - c.lo);
    --op.cohorts;
    s.cohorts[index] = s.cohorts[--s.cohort_count];
    s.rates_due = s.dispatch_due = true;
}

void dispatch(DeviceState& s) {
    s.dispatch_due = false;
    struct Lane { int lo, hi; } taken[max_active];
    int taken_count = 0;
    for (int i = 0; i < s.active_count; ++i) {
        const int op_index = s.active[i];
        Op& op = s.ops[op_index];
        if (op.unstarted == 0) continue;
        const Stream& stream = s.streams[op.stream];
        if (!s.mps && stream.context != s.current) continue;
        bool behind = false;
        for (int l = 0; l < taken_count && !behind; ++l)
            behind = stream.first_sm < taken[l].hi && taken[l].lo < stream.end_sm;
        if (behind) continue;
        place(s, op_index);
        if (op.unstarted == 0) continue;
        taken[taken_count++] = {stream.first_sm, stream.end_sm};
        const int cohorts = s.cohort_count;
        for (int c = 0; c < cohorts; ++c) {
            const Cohort& other = s.cohorts[c];
            if (other.lo == other.hi || other.paused || other.left <= 1 || other.op == op_index) continue;
            if (s.streams[s.ops[other.op].stream].priority <= stream.priority) continue;
            if (other.lo < stream.end_sm && stream.first_sm < other.hi) truncate(s, c);
        }
    }
    for (int i = 0; i < s.active_count; ++i)
        if (s.ops[s.active[i]].cohorts > cohorts_per_kernel) join_cohorts(s, s.active[i]);
}

void update_sums(DeviceState& s) {
    TrueSums sums{};
    std::uint32_t clients[max_active];
    for (int i = 0; i < s.active_count; ++i) {
        const Op& op = s.ops[s.active[i]];
        const Stream& stream = s.streams[op.stream];
        if (op.resident == 0 || (!s.mps && stream.context != s.current)) continue;
        const AloneProfile& alone = s.kernels[op.kernel].alone;
        sums.sm_sum += alone.sm_util;
        sums.bw_sum += alone.bw_util;
        ++sums.kernels;
        if (std::find(clients, clients + sums.clients, stream.client) == clients + sums.clients)
            clients[sums.clients++] = stream.client;
    }
    const bool changed = sums.kernels != s.sums.kernels || sums.sm_sum != s.sums.sm_sum ||
                         sums.bw_sum != s.sums.bw_sum || sums.clients != s.sums.clients;
    s.sums = sums;
    if (!changed) return;
    Truth& t = s.truth;
    t.sm_peak = std::max(t.sm_peak, sums.sm_sum);
    t.bw_peak = std::max(t.bw_peak, sums.bw_sum);
    if (sums.clients >= 2) {
        t.shared_sm_peak = std::max(t.shared_sm_peak, sums.sm_sum);
        t.shared_bw_peak = std::max(t.shared_bw_peak, sums.bw_sum);
    }
    if (!s.logging) return;
    s.samples[s.sample_write++ % sample_ring] = {s.now_ns, sums.sm_sum, sums.bw_sum, sums.kernels, sums.clients};
    if (s.sample_write - s.sample_read > sample_ring) {
        ++s.sample_read;
        ++t.samples_lost;
    }
}

// Time slicing: one context's kernels are on the device at a time. A context keeps it while nobody else has kernels at
// the front end; otherwise for slice_ns; a switch saves and restores all resident blocks and takes switch_ns.
void switch_contexts(DeviceState& s) {
    if (s.mps) return;
    const auto pause = [&s](int context, bool paused) {
        for (int i = 0; i < s.cohort_count; ++i) {
            Cohort& c = s.cohorts[i];
            if (c.lo == c.hi || c.paused == paused || s.streams[s.ops[c.op].stream].context != context) continue;
            occupy(s, c, paused ? -1 : 1);
            c.paused = paused;
            c.end_ns = never;
        }
        s.rates_due = s.dispatch_due = true;
    };
    if (s.switch_to >= 0) {
        if (s.now_ns < s.switch_end_ns) return;
        s.current = s.switch_to;
        s.switch_to = -1;
        s.switch_end_ns = s.slice_end_ns = never;
        pause(s.current, false);
    }
    const auto active = [&s](int context) { return context >= 0 && s.contexts[context].active > 0; };
    int next = -1;
    const int from = s.current >= 0 ? s.current : s.previous >= 0 ? s.previous : max_contexts - 1;
    for (int i = 1; i <= max_contexts && next < 0; ++i) {
        const int candidate = (from + i) % max_contexts;
        if (candidate != s.current && active(candidate)) next = candidate;
    }
    if (active(s.current)) {
        if (next < 0) {
            s.slice_end_ns = never;
            return;
        }
        if (s.slice_end_ns == never) s.slice_end_ns = s.now_ns + s.spec.slice_ns;
        if (s.now_ns < s.slice_end_ns) return;
    }
    if (next < 0) return;
    if (s.current >= 0) pause(s.current, true);
    s.previous = s.current;
    s.slice_end_ns = never;
    if (s.current < 0) {                   // nothing was on the device: nothing to save
        s.current = next;
        pause(next, false);
        switch_contexts(s);
        return;
    }
    s.current = -1;
    s.switch_to = next;
    s.switch_end_ns = s.now_ns + s.spec.switch_ns;
}

}  // namespace tierline::fake
