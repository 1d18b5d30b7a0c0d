// The event loop and the streams. An operation reaches the front end when it heads its stream, its submission has
// arrived, the gap behind its predecessor has passed and legacy-stream rules allow it; then it is active until it ends.
#include "timeline.hpp"

#include <algorithm>

namespace tierline::fake {

std::uint64_t mixed(std::uint64_t x) {                   // splitmix64
    x += 0x9e3779b97f4a7c15ULL;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}

void set_now(DeviceState& s, std::int64_t to) {
    const std::int64_t dt = to - s.now_ns;
    s.now_ns = to;
    if (dt <= 0 || s.sums.kernels == 0) return;
    Truth& t = s.truth;
    t.busy_ns += dt;
    t.sm_integral += s.sm_use_now * double(dt);
    t.bw_integral += s.bw_use_now * double(dt);
    if (s.sums.clients < 2) return;
    t.shared_ns += dt;
    if (s.sums.sm_sum > 1 || s.sums.bw_sum > 1) t.excess_ns += dt;
}

namespace {

void push_completion(DeviceState& s, const Op& op) {
    s.completions[s.completion_write++ % completion_ring] = {
        op.id,           op.stream,   op.kind,  op.kernel, s.streams[op.stream].client,
        op.submitted_ns, op.start_ns, s.now_ns, op.cookie};
    if (s.completion_write - s.completion_read > completion_ring) {
        ++s.completion_read;
        ++s.truth.completions_lost;
    }
}

}  // namespace

void free_op(DeviceState& s, int index) {
    s.ops[index].next = s.op_free;
    s.op_free = index;
    --s.live_ops;
}

namespace {

// Legacy default stream: its operations wait for everything submitted before them to the context's blocking streams,
// and operations of blocking streams wait for what was submitted before them to the legacy stream.
bool held_by_legacy(const DeviceState& s, const Stream& stream, OpId id) {
    const auto busy_before = [&](int other) {
        const int head = s.streams[other].head;
        return head >= 0 && s.ops[head].id < id;
    };
    const Context& context = s.contexts[stream.context];
    if (stream.legacy) {
        for (int i = context.first_stream; i >= 0; i = s.streams[i].next_in_context)
            if (s.streams[i].blocking && busy_before(i)) return true;
        return false;
    }
    return stream.blocking && context.legacy_stream >= 0 && busy_before(context.legacy_stream);
}

void set_timer(DeviceState& s, int stream_index, Op& op) {
    const Stream& stream = s.streams[stream_index];
    const DeviceSpec& d = s.spec;
    const std::uint64_t dice = mixed(s.seed ^ static_cast<std::uint64_t>(op.id));
    std::int64_t jitter = d.launch_jitter_ns > 0
                              ? static_cast<std::int64_t>(dice % static_cast<std::uint64_t>(d.launch_jitter_ns + 1))
                              : 0;
    if (dice >> 56 == 0) jitter *= 10;
    std::int64_t ready = op.graph_inner ? 0 : op.submitted_ns + d.launch_latency_ns + jitter;
    std::int64_t behind = stream.last_end_ns;
    if (op.kind == OpKind::kernel && behind >= 0)
        behind += op.graph_inner ? d.graph_gap_ns : d.stream_gap_ns + jitter / 4;
    ready = std::max({ready, behind, s.now_ns});
    if (op.kind == OpKind::kernel) ready += d.ramp_ns;
    if (op.kind == OpKind::copy) ready += d.copy_latency_ns;
    op.ready_ns = ready;
    op.state = OpState::timed;
    s.timed[s.timed_count++] = stream_index;
    s.next_ns = std::min(s.next_ns, op.ready_ns);
}

// The stream's head has become head.
void arm(DeviceState& s, int stream_index) {
    const Stream& stream = s.streams[stream_index];
    if (stream.head < 0) return;
    Op& op = s.ops[stream.head];
    if (held_by_legacy(s, stream, op.id)) {
        op.state = OpState::blocked;
        s.blocked[s.blocked_count++] = stream_index;
        return;
    }
    set_timer(s, stream_index, op);
}

}  // namespace

void release_stream(DeviceState& s, int index) {
    Stream& stream = s.streams[index];
    Context& context = s.contexts[stream.context];
    int* link = &context.first_stream;
    while (*link != index) link = &s.streams[*link].next_in_context;
    *link = stream.next_in_context;
    if (context.legacy_stream == index) context.legacy_stream = -1;
    stream.used = false;
}

// The head of the stream has ended: pops it and arms the next.
void finish_head(DeviceState& s, int stream_index) {
    Stream& stream = s.streams[stream_index];
    const int index = stream.head;
    Op& op = s.ops[index];
    if (op.start_ns < 0) op.start_ns = op.ready_ns;
    if (op.kind != OpKind::host) push_completion(s, op);
    stream.completed = op.id;
    stream.last_end_ns = s.now_ns;
    stream.head = op.next;
    if (stream.head < 0) stream.tail = -1;
    --s.contexts[stream.context].ops;
    free_op(s, index);
    if (stream.head >= 0) arm(s, stream_index);
    else if (stream.closing) release_stream(s, stream_index);
}

namespace {

void take_tokens(DeviceState& s) {
    for (int i = 0; i < s.active_count; ++i) {
        Op& op = s.ops[s.active[i]];
        if (!op.spinning || op.resident == 0) continue;
        std::uint32_t& posted = s.tokens[s.kernels[op.kernel].spec.spin_token];
        if (posted == 0) continue;
        --posted;
        op.spinning = false;
        s.rates_due = true;
    }
}

void finish_kernel(DeviceState& s, int op_index) {
    const Op& op = s.ops[op_index];
    int* const end = s.active + s.active_count;
    std::copy(std::find(s.active, end, op_index) + 1, end, std::find(s.active, end, op_index));
    --s.active_count;
    --s.contexts[s.streams[op.stream].context].active;
    ++s.truth.kernels_done;
    if (const std::uint32_t token = s.kernels[op.kernel].spec.post_token; token != 0) ++s.tokens[token];
    s.dispatch_due = true;
    finish_head(s, op.stream);
}

}  // namespace

void start_engine(DeviceState& s, CopyEngine& engine) {
    const Op& op = s.ops[engine.first];
    const double rate = op.direction == Direction::host_to_device ? s.spec.host_to_device_bytes_per_s
                                                                  : s.spec.device_to_host_bytes_per_s;
    engine.end_ns = s.now_ns + static_cast<std::int64_t>(double(op.bytes) / rate * 1e9) + 1;
    s.ops[engine.first].start_ns = s.now_ns;
}

namespace {

bool begin_copy(DeviceState& s, int op_index) {
    Op& op = s.ops[op_index];
    op.start_ns = s.now_ns;
    if (op.direction == Direction::host_to_device || op.direction == Direction::device_to_host) {
        CopyEngine& engine = s.engines[op.direction == Direction::host_to_device ? 0 : 1];
        op.engine_next = -1;
        if (engine.first >= 0) {
            s.ops[engine.last].engine_next = op_index;
            engine.last = op_index;
        } else {
            engine.first = engine.last = op_index;
            start_engine(s, engine);
        }
        return true;
    }
    if (s.cohort_count == max_cohorts) return false;
    Cohort& c = s.cohorts[s.cohort_count++];
    c = Cohort{};
    c.op = op_index;
    c.rounds = c.left = 1;
    c.end_ns = never;
    const double bytes = std::max<double>(1, double(op.bytes));
    c.copy_rate = s.spec.device_copy_bytes_per_s * 1e-9 / bytes;
    c.copy_dram_bytes = op.direction == Direction::fill ? bytes : 2 * bytes;
    op.cohorts = 1;
    s.rates_due = true;
    return true;
}

bool begin_kernel(DeviceState& s, int op_index) {
    if (s.active_count == max_active) return false;
    const Op& op = s.ops[op_index];
    const int priority = s.streams[op.stream].priority;
    int at = s.active_count++;
    for (; at > 0 && s.streams[s.ops[s.active[at - 1]].stream].priority > priority; --at)
        s.active[at] = s.active[at - 1];
    s.active[at] = op_index;
    ++s.contexts[s.streams[op.stream].context].active;
    s.dispatch_due = true;
    return true;
}

// The head of the stream has reached the front end. False: it has to wait for others.
bool begin(DeviceState& s, int stream_index) {
    const int op_index = s.streams[stream_index].head;
    Op& op = s.ops[op_index];
    op.state = OpState::active;
    switch (op.kind) {
        case OpKind::kernel: return begin_kernel(s, op_index);
        case OpKind::copy: return begin_copy(s, op_index);
        case OpKind::host:
            op.start_ns = s.now_ns;
            push_completion(s, op);
            return true;
        case OpKind::wait:
            if (s.events[op.event].completed < op.event_record) return false;
            finish_head(s, stream_index);
            return true;
        case OpKind::event: {
            Event& event = s.events[op.event];
            event.completed = std::max(event.completed, op.event_record);
            if (event.recorded == op.event_record) event.time_ns = s.now_ns;
            finish_head(s, stream_index);
            return true;
        }
    }
    return true;
}

bool start_due_streams(DeviceState& s) {
    bool any = false;
    for (int i = 0; i < s.timed_count;) {
        const int stream = s.timed[i];
        if (s.ops[s.streams[stream].head].ready_ns > s.now_ns) {
            ++i;
            continue;
        }
        any = true;
        for (int j = i + 1; j < s.timed_count; ++j) s.timed[j - 1] = s.timed[j];   // keeps the order of arrival
        --s.timed_count;
        if (!begin(s, stream)) {
            s.ops[s.streams[stream].head].state = OpState::blocked;
            s.blocked[s.blocked_count++] = stream;
        }
    }
    return any;
}

bool retry_blocked_streams(DeviceState& s) {
    bool any = false;
    const int waiting = s.blocked_count;
    int kept = 0;
    for (int i = 0; i < waiting; ++i) {
        const int index = s.blocked[i];
        const Stream& stream = s.streams[index];
        Op& op = s.ops[stream.head];
        bool stays = false;
        if (op.ready_ns < 0) {                           // has never had a time: legacy rules held it
            if (held_by_legacy(s, stream, op.id)) stays = true;
            else set_timer(s, index, op);
        } else {
            stays = !begin(s, index);
            if (stays) op.state = OpState::blocked;
        }
        if (stays) s.blocked[kept++] = index;
        else any = true;
    }
    for (int i = waiting; i < s.blocked_count; ++i) s.blocked[kept++] = s.blocked[i];
    s.blocked_count = kept;
    return any;
}

void find_next(DeviceState& s) {
    std::int64_t next = never;
    for (int i = 0; i < s.cohort_count; ++i) next = std::min(next, s.cohorts[i].end_ns);
    for (int i = 0; i < s.timed_count; ++i) next = std::min(next, s.ops[s.streams[s.timed[i]].head].ready_ns);
    for (const CopyEngine& engine : s.engines)
        if (engine.first >= 0) next = std::min(next, engine.end_ns);
    if (!s.mps) next = std::min({next, s.slice_end_ns, s.switch_end_ns});
    s.next_ns = next;
}

}  // namespace

// Everything that happens at now_ns, then the speeds until the next event.
void settle(DeviceState& s) {
    progress(s);
    for (int i = 0; i < s.cohort_count;) {
        if (s.cohorts[i].end_ns > s.now_ns) {
            ++i;
            continue;
        }
        const int op_index = s.cohorts[i].op;
        remove_cohort(s, i);
        const Op& op = s.ops[op_index];
        if (op.kind == OpKind::copy) finish_head(s, op.stream);
        else if (op.unstarted == 0 && op.resident == 0) finish_kernel(s, op_index);
    }
    for (CopyEngine& engine : s.engines) {
        if (engine.first < 0 || engine.end_ns > s.now_ns) continue;
        const int done = engine.first;
        engine.first = s.ops[done].engine_next;
        if (engine.first >= 0) start_engine(s, engine);
        finish_head(s, s.ops[done].stream);
    }
    for (bool again = true; again;) {
        again = start_due_streams(s);
        if (s.blocked_count > 0) again = retry_blocked_streams(s) || again;
    }
    switch_contexts(s);
    if (s.dispatch_due) dispatch(s);
    take_tokens(s);
    if (s.rates_due) {
        update_rates(s);
        update_sums(s);
    }
    find_next(s);
}

Op* append(DeviceState& s, StreamId stream_index, OpKind kind, std::int64_t submitted) {
    int index = s.op_free;
    if (index >= 0) s.op_free = s.ops[index].next;
    else index = s.op_fresh++;
    ++s.live_ops;
    Op& op = s.ops[index];
    op = Op{};
    op.id = ++s.last_op;
    op.submitted_ns = submitted;
    op.ready_ns = op.start_ns = -1;
    op.next = op.engine_next = op.kernel = op.event = -1;
    op.stream = stream_index;
    op.kind = kind;
    op.speed = 1;
    Stream& stream = s.streams[stream_index];
    stream.submitted = op.id;
    ++s.contexts[stream.context].ops;
    if (stream.tail >= 0) s.ops[stream.tail].next = index;
    else stream.head = index;
    stream.tail = index;
    return &op;
}

bool room(const DeviceState& s, int count) { return s.live_ops + count <= max_ops; }

void armed(DeviceState& s, StreamId stream, OpId first) {
    const int head = s.streams[stream].head;
    if (head >= 0 && s.ops[head].id == first) arm(s, stream);
}

void fill_kernel(DeviceState& s, Op& op, KernelId kernel, std::uint64_t cookie) {
    const KernelEntry& e = s.kernels[kernel];
    op.kernel = kernel;
    op.cookie = cookie;
    op.unstarted = e.blocks;
    op.spinning = e.spec.spin == Spin::until_released;
    const double dice = double(mixed(~s.seed ^ static_cast<std::uint64_t>(op.id)) >> 11) * 0x1p-53;   // 0..1
    op.speed = 1 / (1 + s.spec.work_jitter * (2 * dice - 1));
}

}  // namespace tierline::fake
