// Speeds. A block of a cohort advances at the least of five rates: what its share of the SM's pipes gives, what its SM
// can draw, what L2 gives, what DRAM gives, and one over its floor. Shared resources are dealt out by weighted max-min
// (everybody gets what he asks for up to a common level): pipes within an SM by resident warps, L2 and DRAM by SMs.
#include <algorithm>
#include <cmath>

#include "device_state.hpp"

namespace tierline::fake {
namespace {

constexpr double copy_weight_share = 0.25;   // a copy engine competes for DRAM like this share of the SMs

struct Flow {
    double rate;                             // blocks per ns of one block's place, or rounds per ns of a copy
    double asked;                            // before anything is shared
    double blocks, l2_bytes, dram_bytes, useful_bytes, weight;
    double tensor, fp32, draw;               // SM-ns a block
    double spin_use;                         // of the fp32 pipe of an SM by a spinning cohort
    const Cohort* cohort;
    double sm_weight;
    bool moves;
};

// Weighted max-min: scales each of `rate` so that sum(rate * demand_per_rate) <= capacity.
void share_out(Flow* flows, int count, double Flow::*per_block, double capacity) {
    double demand = 0;
    for (int i = 0; i < count; ++i) demand += flows[i].rate * flows[i].blocks * flows[i].*per_block;
    if (demand <= capacity) return;
    bool settled[max_cohorts] = {};
    double left = capacity, weight = 0;
    for (int i = 0; i < count; ++i) {
        if (flows[i].rate * flows[i].*per_block <= 0) settled[i] = true;
        else weight += flows[i].weight;
    }
    for (bool again = true; again;) {
        again = false;
        const double level = left / weight;
        for (int i = 0; i < count; ++i) {
            const double want = flows[i].rate * flows[i].blocks * flows[i].*per_block;
            if (settled[i] || want > level * flows[i].weight) continue;
            settled[i] = true;
            left -= want;
            weight -= flows[i].weight;
            again = weight > 0;
        }
        if (!again) {
            const double final_level = weight > 0 ? std::max(0.0, left) / weight : 0;
            for (int i = 0; i < count; ++i)
                if (!settled[i])
                    flows[i].rate = final_level * flows[i].weight / (flows[i].blocks * flows[i].*per_block);
        }
    }
}

// DRAM does not go from idle to full with a sharp knee: queues form before. The sixth-order norm reproduces the
// published speed of a norm on 8 to 64 of 132 SMs (0.74 at 32, 0.95 at 48) from one SM's draw alone.
double dram_given(double demand, double capacity) {
    const double x = demand / capacity;
    if (x < 0.2) return capacity;            // below 1e-5 of loss
    const double x3 = x * x * x;
    return demand / std::cbrt(std::sqrt(1 + x3 * x3));
}

void share_memory(DeviceState& s, Flow* flows, int count) {
    share_out(flows, count, &Flow::l2_bytes, s.spec.l2_bytes_per_s * 1e-9);
    double demand = 0;
    for (int i = 0; i < count; ++i) demand += flows[i].rate * flows[i].blocks * flows[i].dram_bytes;
    share_out(flows, count, &Flow::dram_bytes, dram_given(demand, s.spec.dram_bytes_per_s * 1e-9));
}

// One pipe of the SMs: `use` gives a flow's SM-ns per block. SMs between two neighbouring cohort ends hold the same
// cohorts; a cohort over several such pieces gets the mean of its factors (its blocks are not followed one by one).
template <class Use>
bool share_pipe(Flow* flows, int count, double capacity, Use use) {
    double all = 0;
    for (int i = 0; i < count; ++i) all += use(flows[i]) * flows[i].cohort->per_sm * flows[i].rate + flows[i].spin_use;
    if (all <= capacity * (1 + 1e-9)) return false;     // even if all of them lay on one SM
    int edges[2 * max_cohorts];
    int edge_count = 0;
    double factor[max_cohorts];
    for (int i = 0; i < count; ++i) {
        factor[i] = 0;
        if (flows[i].cohort->lo == flows[i].cohort->hi) continue;
        edges[edge_count++] = flows[i].cohort->lo;
        edges[edge_count++] = flows[i].cohort->hi;
    }
    std::sort(edges, edges + edge_count);
    edge_count = static_cast<int>(std::unique(edges, edges + edge_count) - edges);
    bool cut = false;
    for (int e = 0; e + 1 < edge_count; ++e) {
        const int lo = edges[e], hi = edges[e + 1];
        int here[max_cohorts];
        int n = 0;
        double demand = 0, spins = 0, weight = 0;
        for (int i = 0; i < count; ++i) {
            const Cohort& c = *flows[i].cohort;
            if (c.lo > lo || c.hi < hi) continue;
            spins += flows[i].spin_use;
            here[n++] = i;
            demand += use(flows[i]) * c.per_sm * flows[i].rate;
            weight += flows[i].sm_weight;
        }
        double left = std::max(capacity - spins, 0.2 * capacity);   // spinning warps do not starve the others
        const bool over = demand > left * (1 + 1e-9);
        cut = cut || over;
        for (bool again = true; again;) {                // deals out to those that ask for less than the level
            again = false;
            for (int k = 0; k < n; ++k) {
                const int i = here[k];
                const double want = use(flows[i]) * flows[i].cohort->per_sm * flows[i].rate;
                if (over && want > left / weight * flows[i].sm_weight) continue;
                factor[i] += hi - lo;
                left -= want;
                weight -= flows[i].sm_weight;
                here[k--] = here[--n];
                again = true;
            }
        }
        for (int k = 0; k < n; ++k) {
            const int i = here[k];
            const double want = use(flows[i]) * flows[i].cohort->per_sm * flows[i].rate;
            factor[i] += (hi - lo) * std::min(1.0, left / weight * flows[i].sm_weight / want);
        }
    }
    if (!cut) return false;
    for (int i = 0; i < count; ++i)
        if (flows[i].cohort->lo != flows[i].cohort->hi)
            flows[i].rate *= factor[i] / (flows[i].cohort->hi - flows[i].cohort->lo);
    return true;
}

bool share_sms(DeviceState& s, Flow* flows, int count) {
    bool cut = share_pipe(flows, count, s.spec.tensor_ceiling, [](const Flow& f) { return f.tensor; });
    cut |= share_pipe(flows, count, s.spec.fp32_ceiling, [](const Flow& f) { return f.fp32; });
    cut |= share_pipe(flows, count, 1.0, [&s](const Flow& f) { return f.fp32 + s.spec.tensor_issue * f.tensor; });
    cut |= share_pipe(flows, count, 1.0, [](const Flow& f) { return f.draw; });
    return cut;
}

// Share of L2 hits that is left beside the co-runners: what they all want to keep against what there is. Working sets
// above L2 count as L2 (nobody can hold more), so a kernel alone always has its own hit share.
double l2_kept(const DeviceState& s) {
    double wanted = 0;
    const double l2 = double(s.spec.l2_bytes);
    for (int i = 0; i < s.active_count; ++i) {
        const Op& op = s.ops[s.active[i]];
        if (op.resident > 0 && (s.mps || s.streams[op.stream].context == s.current))
            wanted += std::min(s.kernels[op.kernel].spec.working_set_bytes, l2);
    }
    return wanted > l2 ? l2 / wanted : 1.0;
}

// Blocks of the cohort's kernel on one of its SMs, other cohorts of it included.
double neighbours(const DeviceState& s, const Cohort& c) {
    double n = c.per_sm;
    if (s.ops[c.op].cohorts == 1) return n;
    for (int j = 0; j < s.cohort_count; ++j) {
        const Cohort& o = s.cohorts[j];
        if (&o == &c || o.op != c.op || o.paused) continue;
        const int overlap = std::min(c.hi, o.hi) - std::max(c.lo, o.lo);
        if (overlap > 0) n += double(o.per_sm) * overlap / (c.hi - c.lo);
    }
    return n;
}

Flow flow_of(const DeviceState& s, const Cohort& c, double kept) {
    const Op& op = s.ops[c.op];
    Flow f{};
    f.cohort = &c;
    f.moves = true;
    if (c.lo == c.hi) {
        f.rate = c.copy_rate;
        f.blocks = 1;
        f.dram_bytes = f.useful_bytes = c.copy_dram_bytes;
        f.weight = copy_weight_share * s.spec.sms;
        return f;
    }
    const KernelEntry& e = s.kernels[op.kernel];
    const double n = neighbours(s, c);
    const double filled = std::min(1.0, n / e.saturating_blocks);
    f.blocks = double(c.per_sm) * (c.hi - c.lo);
    f.weight = c.hi - c.lo;
    f.sm_weight = double(c.per_sm) * e.block_threads;
    if (op.spinning) {
        f.moves = false;
        f.spin_use = e.spec.compute_efficiency * filled * c.per_sm / n;
        return f;
    }
    f.rate = std::min(std::min(e.sm_compute_rate, e.sm_draw_rate) * filled / n, e.floor_rate) * op.speed;
    f.tensor = e.tensor_use;
    f.fp32 = e.fp32_use;
    f.draw = e.draw_use;
    f.l2_bytes = e.spec.bytes_per_block;
    f.useful_bytes = e.spec.bytes_per_block * (1 - e.spec.l2_hit * kept);
    f.dram_bytes = f.useful_bytes / e.spec.dram_efficiency;
    return f;
}

}  // namespace

void progress(DeviceState& s) {
    const double dt = double(s.now_ns - s.progressed_ns);
    s.progressed_ns = s.now_ns;
    if (dt <= 0) return;
    for (int i = 0; i < s.cohort_count; ++i) {
        Cohort& c = s.cohorts[i];
        if (!c.paused) c.left = std::max(0.0, c.left - c.rate * dt);
    }
}

void update_rates(DeviceState& s) {
    s.rates_due = false;
    Flow flows[max_cohorts];
    int index[max_cohorts];
    int count = 0;
    const double kept = l2_kept(s);
    for (int i = 0; i < s.cohort_count; ++i) {
        if (s.cohorts[i].paused) continue;
        index[count] = i;
        flows[count] = flow_of(s, s.cohorts[i], kept);
        flows[count].asked = flows[count].rate;
        ++count;
    }
    share_memory(s, flows, count);
    if (count > 1) {
        double before[max_cohorts];
        for (int i = 0; i < count; ++i) before[i] = flows[i].rate;
        if (share_sms(s, flows, count)) {
            // Whom the SMs slowed leaves memory to the others: those may now take up to what they asked for.
            for (int i = 0; i < count; ++i)
                if (flows[i].rate >= before[i] * (1 - 1e-9)) flows[i].rate = flows[i].asked;
            share_memory(s, flows, count);
            share_sms(s, flows, count);
        }
    }
    double fp32 = 0, tensor = 0, bytes = 0;
    for (int i = 0; i < count; ++i) {
        const Flow& f = flows[i];
        Cohort& c = s.cohorts[index[i]];
        c.rate = f.moves ? f.rate : 0;
        c.end_ns = c.rate > 0 ? s.now_ns + static_cast<std::int64_t>(std::ceil(c.left / c.rate)) : never;
        fp32 += f.rate * f.blocks * f.fp32 + f.spin_use * (c.hi - c.lo);
        tensor += f.rate * f.blocks * f.tensor;
        bytes += f.rate * f.blocks * f.useful_bytes;
    }
    s.sm_use_now = (fp32 + tensor) / s.spec.sms;
    s.bw_use_now = bytes / (s.spec.dram_bytes_per_s * 1e-9);
}

}  // namespace tierline::fake
