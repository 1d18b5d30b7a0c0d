// The event loop and the streams. An operation reaches the front end when it heads its stream, its submission has
// arrived, the gap behind its predecessor has passed and legacy-stream rules allow it; then it is active until it ends.
#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <new>

#include "device_state.hpp"

namespace tierline::fake {
namespace {

std::uint64_t mixed(std::uint64_t x) {                   // splitmix64
    x += 0x9e3779b97f4a7c15ULL;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}

bool valid_stream(const DeviceState& s, StreamId i) { return i >= 0 && i < s.stream_fresh && s.streams[i].used && !s.streams[i].closing; }
bool valid_event(const DeviceState& s, EventId i) { return i >= 0 && i < s.event_fresh && s.events[i].used; }
bool valid_kernel(const DeviceState& s, KernelId i) { return i >= 0 && i < s.kernel_count; }
bool valid_context(const DeviceState& s, ContextId i) { return i >= 0 && i < max_contexts && s.contexts[i].used; }

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

void push_completion(DeviceState& s, const Op& op) {
    s.completions[s.completion_write++ % completion_ring] = {op.id, op.stream, op.kind, op.kernel, s.streams[op.stream].client,
                                                             op.submitted_ns, op.start_ns, s.now_ns, op.cookie};
    if (s.completion_write - s.completion_read > completion_ring) {
        ++s.completion_read;
        ++s.truth.completions_lost;
    }
}

void free_op(DeviceState& s, int index) {
    s.ops[index].next = s.op_free;
    s.op_free = index;
    --s.live_ops;
}

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
    std::int64_t jitter = d.launch_jitter_ns > 0 ? static_cast<std::int64_t>(dice % static_cast<std::uint64_t>(d.launch_jitter_ns + 1)) : 0;
    if (dice >> 56 == 0) jitter *= 10;
    std::int64_t ready = op.graph_inner ? 0 : op.submitted_ns + d.launch_latency_ns + jitter;
    std::int64_t behind = stream.last_end_ns;
    if (op.kind == OpKind::kernel) {
        if (behind >= 0) behind += (op.graph_inner ? d.graph_gap_ns : d.stream_gap_ns + jitter / 4);
        ready = std::max(ready, behind) + d.ramp_ns;
    } else if (op.kind == OpKind::copy) {
        ready = std::max(ready, behind) + d.copy_latency_ns;
    } else {
        ready = std::max(ready, behind);
    }
    op.ready_ns = std::max(ready, s.now_ns);
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

void start_engine(DeviceState& s, CopyEngine& engine) {
    const Op& op = s.ops[engine.first];
    const double rate = op.direction == Direction::host_to_device ? s.spec.host_to_device_bytes_per_s : s.spec.device_to_host_bytes_per_s;
    engine.end_ns = s.now_ns + static_cast<std::int64_t>(double(op.bytes) / rate * 1e9) + 1;
    s.ops[engine.first].start_ns = s.now_ns;
}

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
    for (; at > 0 && s.streams[s.ops[s.active[at - 1]].stream].priority > priority; --at) s.active[at] = s.active[at - 1];
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

Status launchable(const DeviceState& s, StreamId stream, KernelId kernel) {
    if (!valid_stream(s, stream)) return Status::bad_stream;
    if (!valid_kernel(s, kernel)) return Status::bad_kernel;
    const KernelEntry& e = s.kernels[kernel];
    const std::int64_t places = std::int64_t{e.occupancy} * (s.streams[stream].end_sm - s.streams[stream].first_sm);
    return e.spec.cooperative && e.blocks > places ? Status::too_large : Status::ok;
}

}  // namespace

const char* status_text(Status status) {
    switch (status) {
        case Status::ok: return "ok";
        case Status::streams_full: return "no more streams fit the device";
        case Status::operations_full: return "no more queued operations fit the device";
        case Status::kernels_full: return "no more distinct kernels fit the device";
        case Status::events_full: return "no more events fit the device";
        case Status::contexts_full: return "no more contexts fit the device";
        case Status::bad_stream: return "no such stream";
        case Status::bad_event: return "no such event";
        case Status::bad_kernel: return "no such kernel";
        case Status::bad_context: return "no such context";
        case Status::bad_argument: return "an argument is out of range";
        case Status::too_large: return "a block needs more than an SM has, or a cooperative grid more than its SMs";
    }
    return "unknown status";
}

void Device::reset(const DeviceSpec& spec, std::uint64_t seed, bool mps) {
    DeviceState& s = *s_;
    s.spec = spec;
    s.spec.sms = std::clamp(spec.sms, 1, max_sms);
    s.seed = mixed(seed);
    s.now_ns = s.progressed_ns = 0;
    s.next_ns = never;
    s.last_op = 0;
    s.mps = mps;
    s.dispatch_due = s.rates_due = s.logging = false;
    s.op_free = s.event_free = -1;
    s.op_fresh = s.live_ops = s.event_fresh = 0;
    s.stream_fresh = s.kernel_count = s.cohort_count = s.active_count = s.timed_count = s.blocked_count = 0;
    s.current = s.previous = s.switch_to = -1;
    s.slice_end_ns = s.switch_end_ns = never;
    for (CopyEngine& engine : s.engines) engine = {-1, -1, never};
    s.sums = {};
    s.truth = {};
    s.sm_use_now = s.bw_use_now = 0;
    s.completion_read = s.completion_write = s.sample_read = s.sample_write = 0;
    std::fill(std::begin(s.tokens), std::end(s.tokens), 0u);
    std::fill(std::begin(s.contexts), std::end(s.contexts), Context{});
    std::fill(std::begin(s.kernel_slots), std::end(s.kernel_slots), 0);
    clear_runs(s);
}

const DeviceSpec& Device::spec() const { return s_->spec; }
std::int64_t Device::now_ns() const { return s_->now_ns; }

Status Device::create_context(ContextId& out) {
    for (int i = 0; i < max_contexts; ++i) {
        if (s_->contexts[i].used) continue;
        s_->contexts[i] = {-1, -1, 0, 0, true};
        out = i;
        return Status::ok;
    }
    return Status::contexts_full;
}

Status Device::destroy_context(ContextId id) {
    DeviceState& s = *s_;
    if (!valid_context(s, id)) return Status::bad_context;
    progress(s);
    const auto dead = [&](int stream) { return s.streams[stream].context == id; };
    for (int i = 0; i < s.cohort_count;) {
        if (dead(s.ops[s.cohorts[i].op].stream)) remove_cohort(s, i);
        else ++i;
    }
    s.active_count = static_cast<int>(std::remove_if(s.active, s.active + s.active_count, [&](int op) { return dead(s.ops[op].stream); }) - s.active);
    s.timed_count = static_cast<int>(std::remove_if(s.timed, s.timed + s.timed_count, dead) - s.timed);
    s.blocked_count = static_cast<int>(std::remove_if(s.blocked, s.blocked + s.blocked_count, dead) - s.blocked);
    for (CopyEngine& engine : s.engines) {
        const int running = engine.first;
        int first = -1, last = -1;
        for (int op = engine.first; op >= 0;) {
            const int next = s.ops[op].engine_next;
            if (!dead(s.ops[op].stream)) {
                s.ops[op].engine_next = -1;
                if (last >= 0) s.ops[last].engine_next = op;
                else first = op;
                last = op;
            }
            op = next;
        }
        engine.first = first;
        engine.last = last;
        if (first >= 0 && first != running) start_engine(s, engine);
    }
    for (int i = s.contexts[id].first_stream; i >= 0; i = s.streams[i].next_in_context) {
        for (int op = s.streams[i].head; op >= 0;) {
            const int next = s.ops[op].next;
            free_op(s, op);
            op = next;
        }
        s.streams[i].used = false;
    }
    s.contexts[id] = Context{};
    if (s.current == id) s.current = -1;
    if (s.previous == id) s.previous = -1;
    if (s.switch_to == id) s.switch_to = -1, s.switch_end_ns = never;
    s.dispatch_due = s.rates_due = true;
    settle(s);
    return Status::ok;
}

Status Device::create_stream(ContextId context, const StreamOptions& o, StreamId& out) {
    DeviceState& s = *s_;
    if (!valid_context(s, context)) return Status::bad_context;
    const int step = s.spec.lane_granularity;
    const int end = o.sm_count == 0 ? s.spec.sms : o.first_sm + o.sm_count;
    if (o.first_sm < 0 || o.sm_count < 0 || o.first_sm % step != 0 || end > s.spec.sms || (end % step != 0 && end != s.spec.sms) ||
        (o.sm_count == 0 && o.first_sm != 0) || (o.legacy && s.contexts[context].legacy_stream >= 0)) {
        return Status::bad_argument;
    }
    int index = 0;
    while (index < s.stream_fresh && s.streams[index].used) ++index;
    if (index == max_streams) return Status::streams_full;
    s.stream_fresh = std::max(s.stream_fresh, index + 1);
    Stream& stream = s.streams[index];
    stream = Stream{};
    stream.head = stream.tail = -1;
    stream.context = context;
    stream.priority = o.priority;
    stream.first_sm = o.first_sm;
    stream.end_sm = end;
    stream.client = o.client != 0 ? o.client : static_cast<std::uint32_t>(context) + 1;
    stream.completed = stream.submitted = s.last_op;
    stream.last_end_ns = -1;
    stream.used = true;
    stream.blocking = o.blocking && !o.legacy;
    stream.legacy = o.legacy;
    stream.next_in_context = s.contexts[context].first_stream;
    s.contexts[context].first_stream = index;
    if (o.legacy) s.contexts[context].legacy_stream = index;
    out = index;
    return Status::ok;
}

Status Device::destroy_stream(StreamId id) {
    DeviceState& s = *s_;
    if (!valid_stream(s, id)) return Status::bad_stream;
    if (s.streams[id].head >= 0) s.streams[id].closing = true;
    else release_stream(s, id);
    return Status::ok;
}

Status Device::create_event(EventId& out) {
    DeviceState& s = *s_;
    int index = s.event_free;
    if (index >= 0) s.event_free = s.events[index].next;
    else if (s.event_fresh < max_events) s.events[index = s.event_fresh++] = {};
    else return Status::events_full;
    // Record numbers only grow, so `completed` stays: a wait still queued for this slot's last owner stays answered.
    s.events[index].recorded = 0;
    s.events[index].time_ns = -1;
    s.events[index].used = true;
    out = index;
    return Status::ok;
}

Status Device::destroy_event(EventId id) {
    DeviceState& s = *s_;
    if (!valid_event(s, id)) return Status::bad_event;
    // Records and waits still queued go on by the slot's record numbers, whoever owns it then.
    s.events[id].used = false;
    s.events[id].next = s.event_free;
    s.event_free = id;
    return Status::ok;
}

Status Device::register_kernel(const KernelSpec& spec, KernelId& out) { return add_kernel(*s_, spec, true, out); }
const KernelSpec* Device::kernel(KernelId k) const { return valid_kernel(*s_, k) ? &s_->kernels[k].spec : nullptr; }
const AloneProfile* Device::alone_profile(KernelId k) const { return valid_kernel(*s_, k) ? &s_->kernels[k].alone : nullptr; }

Enqueued Device::enqueue_kernel(StreamId stream, KernelId kernel, std::int64_t now, std::uint64_t cookie) {
    return enqueue_graph(stream, &kernel, 1, now, cookie);
}

Enqueued Device::enqueue_graph(StreamId stream, const KernelId* nodes, std::int32_t count, std::int64_t now, std::uint64_t cookie) {
    DeviceState& s = *s_;
    advance(now);
    if (count < 1) return {Status::bad_argument, 0};
    for (int i = 0; i < count; ++i)
        if (const Status status = launchable(s, stream, nodes[i]); status != Status::ok) return {status, 0};
    if (!room(s, count)) return {Status::operations_full, 0};
    OpId first = 0;
    for (int i = 0; i < count; ++i) {
        Op* op = append(s, stream, OpKind::kernel, s.now_ns);
        fill_kernel(s, *op, nodes[i], cookie);
        op->graph_inner = i > 0;
        if (i == 0) first = op->id;
    }
    armed(s, stream, first);
    return {Status::ok, s.last_op};
}

Enqueued Device::enqueue_copy(StreamId stream, std::int64_t bytes, Direction direction, std::int64_t now) {
    DeviceState& s = *s_;
    advance(now);
    if (!valid_stream(s, stream)) return {Status::bad_stream, 0};
    if (bytes < 0) return {Status::bad_argument, 0};
    if (!room(s, 1)) return {Status::operations_full, 0};
    Op* op = append(s, stream, OpKind::copy, s.now_ns);
    op->bytes = bytes;
    op->direction = direction;
    armed(s, stream, op->id);
    return {Status::ok, op->id};
}

Enqueued Device::enqueue_event(StreamId stream, EventId event, std::int64_t now) {
    DeviceState& s = *s_;
    advance(now);
    if (!valid_stream(s, stream)) return {Status::bad_stream, 0};
    if (!valid_event(s, event)) return {Status::bad_event, 0};
    if (!room(s, 1)) return {Status::operations_full, 0};
    Op* op = append(s, stream, OpKind::event, s.now_ns);
    op->event = event;
    op->event_record = static_cast<std::uint64_t>(op->id);
    s.events[event].recorded = op->event_record;
    s.events[event].time_ns = -1;
    armed(s, stream, op->id);
    return {Status::ok, op->id};
}

Enqueued Device::enqueue_wait(StreamId stream, EventId event, std::int64_t now) {
    DeviceState& s = *s_;
    advance(now);
    if (!valid_stream(s, stream)) return {Status::bad_stream, 0};
    if (!valid_event(s, event)) return {Status::bad_event, 0};
    if (!room(s, 1)) return {Status::operations_full, 0};
    Op* op = append(s, stream, OpKind::wait, s.now_ns);
    op->event = event;
    op->event_record = s.events[event].recorded;
    armed(s, stream, op->id);
    return {Status::ok, op->id};
}

Enqueued Device::enqueue_host(StreamId stream, std::uint64_t cookie, std::int64_t now) {
    DeviceState& s = *s_;
    advance(now);
    if (!valid_stream(s, stream)) return {Status::bad_stream, 0};
    if (!room(s, 1)) return {Status::operations_full, 0};
    Op* op = append(s, stream, OpKind::host, s.now_ns);
    op->cookie = cookie;
    armed(s, stream, op->id);
    return {Status::ok, op->id};
}

Status Device::host_done(StreamId stream, std::int64_t now) {
    DeviceState& s = *s_;
    advance(now);
    if (stream < 0 || stream >= s.stream_fresh || !s.streams[stream].used) return Status::bad_stream;
    const int head = s.streams[stream].head;
    if (head < 0 || s.ops[head].kind != OpKind::host || s.ops[head].state != OpState::active) return Status::bad_argument;
    finish_head(s, stream);
    settle(s);
    return Status::ok;
}

void Device::spin_post(std::uint32_t token, std::int64_t now) {
    if (token == 0 || token >= max_tokens) return;
    advance(now);
    ++s_->tokens[token];
    settle(*s_);
}

std::int64_t Device::next_time() const { return s_->next_ns; }

void Device::advance(std::int64_t to) {
    DeviceState& s = *s_;
    while (s.next_ns <= to) {
        set_now(s, std::max(s.next_ns, s.now_ns));
        settle(s);
    }
    if (to > s.now_ns) set_now(s, to);
}

bool Device::poll(Completion& out) {
    if (s_->completion_read == s_->completion_write) return false;
    out = s_->completions[s_->completion_read++ % completion_ring];
    return true;
}

bool Device::idle(StreamId i) const { return i < 0 || i >= s_->stream_fresh || !s_->streams[i].used || s_->streams[i].head < 0; }
bool Device::device_idle() const { return s_->live_ops == 0; }
bool Device::context_idle(ContextId i) const { return !valid_context(*s_, i) || s_->contexts[i].ops == 0; }
OpId Device::completed(StreamId i) const { return i >= 0 && i < s_->stream_fresh ? s_->streams[i].completed : 0; }
OpId Device::submitted(StreamId i) const { return i >= 0 && i < s_->stream_fresh ? s_->streams[i].submitted : 0; }
bool Device::event_done(EventId i) const { return !valid_event(*s_, i) || s_->events[i].completed >= s_->events[i].recorded; }
std::int64_t Device::event_time_ns(EventId i) const { return valid_event(*s_, i) ? s_->events[i].time_ns : -1; }

TrueSums Device::true_sums() const { return s_->sums; }
const Truth& Device::truth() const { return s_->truth; }
void Device::clear_truth() { s_->truth = {}; }
void Device::log_truth(bool on) { s_->logging = on; }

bool Device::poll_sample(TruthSample& out) {
    if (s_->sample_read == s_->sample_write) return false;
    out = s_->samples[s_->sample_read++ % sample_ring];
    return true;
}

std::int64_t Device::resident_blocks(KernelId kernel) const {
    std::int64_t n = 0;
    for (int i = 0; i < s_->active_count; ++i) {
        const Op& op = s_->ops[s_->active[i]];
        if (kernel < 0 || op.kernel == kernel) n += op.resident;
    }
    return n;
}

Device::SmUse Device::sm_use(std::int32_t sm) const {
    for (int i = 0; i < s_->run_count; ++i) {
        const Run& r = s_->runs[i];
        if (sm >= r.lo && sm < r.hi) return {r.registers, r.shared, r.threads, r.blocks};
    }
    return {};
}

std::size_t device_state_bytes() { return sizeof(DeviceState); }

void DeviceStateDeleter::operator()(DeviceState* state) const { std::free(state); }

DeviceStatePtr new_device_state() {
    // Zero pages from the system cost nothing until they are touched; a device touches only what it uses.
    void* memory = std::calloc(1, sizeof(DeviceState));
    if (memory == nullptr) throw std::bad_alloc();
    return DeviceStatePtr(static_cast<DeviceState*>(memory));
}

}  // namespace tierline::fake
