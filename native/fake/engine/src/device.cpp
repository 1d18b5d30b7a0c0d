// The device's calls: checks of arguments, bookkeeping of contexts, streams and events.
#include "tierline/fake/device.hpp"

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <new>

#include "timeline.hpp"

namespace tierline::fake {
namespace {

bool valid_stream(const DeviceState& s, StreamId i) {
    return i >= 0 && i < s.stream_fresh && s.streams[i].used && !s.streams[i].closing;
}
bool valid_event(const DeviceState& s, EventId i) { return i >= 0 && i < s.event_fresh && s.events[i].used; }
bool valid_kernel(const DeviceState& s, KernelId i) { return i >= 0 && i < s.kernel_count; }
bool valid_context(const DeviceState& s, ContextId i) { return i >= 0 && i < max_contexts && s.contexts[i].used; }

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
    s.active_count = static_cast<int>(
        std::remove_if(s.active, s.active + s.active_count, [&](int op) { return dead(s.ops[op].stream); }) - s.active);
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
    if (o.first_sm < 0 || o.sm_count < 0 || o.first_sm % step != 0 || end > s.spec.sms ||
        (end % step != 0 && end != s.spec.sms) || (o.sm_count == 0 && o.first_sm != 0) ||
        (o.legacy && s.contexts[context].legacy_stream >= 0)) {
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
const AloneProfile* Device::alone_profile(KernelId k) const {
    return valid_kernel(*s_, k) ? &s_->kernels[k].alone : nullptr;
}

Enqueued Device::enqueue_kernel(StreamId stream, KernelId kernel, std::int64_t now, std::uint64_t cookie) {
    return enqueue_graph(stream, &kernel, 1, now, cookie);
}

Enqueued Device::enqueue_graph(StreamId stream, const KernelId* nodes, std::int32_t count, std::int64_t now,
                               std::uint64_t cookie) {
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
    if (head < 0 || s.ops[head].kind != OpKind::host || s.ops[head].state != OpState::active)
        return Status::bad_argument;
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

bool Device::idle(StreamId i) const {
    return i < 0 || i >= s_->stream_fresh || !s_->streams[i].used || s_->streams[i].head < 0;
}
bool Device::device_idle() const { return s_->live_ops == 0; }
bool Device::context_idle(ContextId i) const { return !valid_context(*s_, i) || s_->contexts[i].ops == 0; }
OpId Device::completed(StreamId i) const { return i >= 0 && i < s_->stream_fresh ? s_->streams[i].completed : 0; }
OpId Device::submitted(StreamId i) const { return i >= 0 && i < s_->stream_fresh ? s_->streams[i].submitted : 0; }
bool Device::event_done(EventId i) const {
    return !valid_event(*s_, i) || s_->events[i].completed >= s_->events[i].recorded;
}
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
