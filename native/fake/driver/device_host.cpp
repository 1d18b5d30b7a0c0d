// One case and one method for every kind of change: that is why this file is longer than others.
#include "device_host.hpp"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <ctime>

#include "config.hpp"

namespace tierline::fakecuda {
namespace {

constexpr std::uint64_t kSeed = 1;
constexpr std::int64_t kReapEveryNs = 5'000'000;

enum class Kind : std::uint32_t {
    create_context,
    destroy_context,
    create_stream,
    destroy_stream,
    create_event,
    destroy_event,
    register_kernel,
    kernel,
    graph,
    copy,
    event,
    wait,
    host,
    host_done,
    post,
    advance
};

std::int64_t monotonic_ns() {
    timespec now{};
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<std::int64_t>(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
}

}  // namespace

// One change to the device. What follows it in the journal (a kernel's spec, stream options, a graph's nodes) is its
// payload.
struct DeviceHost::Command {
    Kind kind;
    std::int32_t first = 0;   // context, stream, event or token
    std::int32_t second = 0;  // kernel, event, direction or count of nodes
    std::uint32_t reserved = 0;
    std::int64_t at_ns = 0;
    std::int64_t bytes = 0;
    std::uint64_t cookie = 0;
};

std::string DeviceHost::open(const Config& config) {
    DeviceSpec spec;
    if (!device_spec_by_name(config.device.c_str(), spec)) {
        return "FAKECUDA_DEVICE=" + config.device + ": h200, a100 and v100 are allowed";
    }
    if (config.memory_bytes != 0) spec.memory_bytes = static_cast<std::int64_t>(config.memory_bytes);
    wall_ = config.wall_clock;
    scale_ = config.scale;
    keep_intervals_ = !config.truth.empty();
    label_ = config.label;
    shared_ = !config.shared.empty();
    if (!shared_) {
        own_ = new_device_state();
        held_.emplace(*own_);
        held_->reset(spec, kSeed, config.mps);
        base_real_ns_ = monotonic_ns();
        return {};
    }
    char settings[64];
    std::snprintf(settings, sizeof settings, "%s %s %g mps=%d %lld", config.device.c_str(), wall_ ? "wall" : "virtual",
                  wall_ ? scale_ : 1.0, config.mps ? 1 : 0, static_cast<long long>(spec.memory_bytes));
    bool fresh = false;
    std::string complaint = file_.join(config.shared, settings, device_state_bytes(), fresh);
    if (!complaint.empty()) return complaint;
    held_.emplace(*static_cast<DeviceState*>(file_.state()));
    if (fresh) {
        held_->reset(spec, kSeed, config.mps);
        file_.checkpoint();
    } else {
        repair();  // the last process may have been killed while it held the lock; costs a copy, once
    }
    if (keep_intervals_) file_.header().keep_intervals = 1;
    base_real_ns_ = file_.header().base_real_ns;
    client_ = file_.self().client;
    std::snprintf(file_.self().label, sizeof file_.self().label, "%s", label_.c_str());
    file_.unlock();
    file_.joined();
    return {};
}

void DeviceHost::close() {
    if (!shared_) return;
    const std::uint64_t contexts = file_.self().contexts;
    for (std::int32_t i = 0; i < 64; ++i) {
        if ((contexts >> i & 1) != 0) destroy_context(i);
    }
    file_.leave();
}

void DeviceHost::lock() {
    if (shared_ && file_.lock()) repair();
}

void DeviceHost::unlock() {
    if (shared_) file_.unlock();
}

void DeviceHost::repair() {
    file_.restore();
    std::uint64_t offset = 0;
    std::uint32_t size = 0;
    while (const void* record = file_.record(offset, size)) {
        Command command;
        std::memcpy(&command, record, sizeof command);
        // Copied out: records are not aligned for what they carry.
        std::vector<std::uint64_t> payload((size - sizeof command) / 8 + 1);
        std::memcpy(payload.data(), static_cast<const char*>(record) + sizeof command, size - sizeof command);
        apply(command, payload.data(), true);
    }
}

std::int64_t DeviceHost::wall_ns() const {
    return static_cast<std::int64_t>(static_cast<double>(monotonic_ns() - base_real_ns_) * scale_);
}

std::int64_t DeviceHost::now() {
    if (!wall_) return held_->now_ns();
    const std::int64_t at = std::max(wall_ns(), held_->now_ns());
    if (held_->next_time() <= at) {
        Command command{Kind::advance};
        command.at_ns = at;
        run(command, nullptr, 0);
    }
    return at;
}

std::int64_t DeviceHost::real_until_next() const {
    const std::int64_t next = held_->next_time();
    if (next == never) return -1;
    const double left = static_cast<double>(next - wall_ns()) / scale_;
    return left <= 0.0 ? 0 : static_cast<std::int64_t>(std::min(left, 1e15)) + 1;
}

void DeviceHost::pass(std::int64_t ns) {
    if (wall_ || ns <= 0) return;
    Command command{Kind::advance};
    command.at_ns = held_->now_ns() + ns;
    run(command, nullptr, 0);
}

bool DeviceHost::step() {
    const std::int64_t next = held_->next_time();
    if (next == never) return false;
    Command command{Kind::advance};
    command.at_ns = std::max(next, held_->now_ns());
    run(command, nullptr, 0);
    return true;
}

void DeviceHost::apply(const Command& c, const void* payload, bool replaying) {
    Device& device = *held_;
    Enqueued enqueued;
    made_ = -1;
    switch (c.kind) {
        case Kind::create_context: enqueued.status = device.create_context(made_); break;
        case Kind::destroy_context: enqueued.status = device.destroy_context(c.first); break;
        case Kind::create_stream: {
            StreamOptions options;
            std::memcpy(&options, payload, sizeof options);
            enqueued.status = device.create_stream(c.first, options, made_);
            break;
        }
        case Kind::destroy_stream: enqueued.status = device.destroy_stream(c.first); break;
        case Kind::create_event: enqueued.status = device.create_event(made_); break;
        case Kind::destroy_event: enqueued.status = device.destroy_event(c.first); break;
        case Kind::register_kernel: {
            KernelSpec spec;
            std::memcpy(static_cast<void*>(&spec), payload, sizeof spec);
            enqueued.status = device.register_kernel(spec, made_);
            break;
        }
        case Kind::kernel: enqueued = device.enqueue_kernel(c.first, c.second, c.at_ns); break;
        case Kind::graph:
            enqueued = device.enqueue_graph(c.first, static_cast<const KernelId*>(payload), c.second, c.at_ns);
            break;
        case Kind::copy:
            enqueued = device.enqueue_copy(c.first, c.bytes, static_cast<Direction>(c.second), c.at_ns);
            break;
        case Kind::event: enqueued = device.enqueue_event(c.first, c.second, c.at_ns); break;
        case Kind::wait: enqueued = device.enqueue_wait(c.first, c.second, c.at_ns); break;
        case Kind::host: enqueued = device.enqueue_host(c.first, c.cookie, c.at_ns); break;
        case Kind::host_done: enqueued.status = device.host_done(c.first, c.at_ns); break;
        case Kind::post: device.spin_post(static_cast<std::uint32_t>(c.first), c.at_ns); break;
        case Kind::advance: device.advance(std::max(c.at_ns, device.now_ns())); break;
    }
    status_ = enqueued.status;
    op_ = enqueued.op;
    drain(replaying);
}

Enqueued DeviceHost::run(Command& command, const void* payload, std::uint32_t payload_bytes) {
    bool recorded = true;
    if (shared_) {
        char record[sizeof(Command) + sizeof(KernelSpec) + 64];
        std::vector<char> large;
        char* place = record;
        if (sizeof command + payload_bytes > sizeof record) {
            large.resize(sizeof command + payload_bytes);
            place = large.data();
        }
        std::memcpy(place, &command, sizeof command);
        if (payload_bytes > 0) std::memcpy(place + sizeof command, payload, payload_bytes);
        const auto size = static_cast<std::uint32_t>(sizeof command + payload_bytes);
        recorded = file_.journal(place, size);
        if (!recorded) {
            file_.checkpoint();
            recorded = file_.journal(place, size);
        }
    }
    apply(command, payload, false);
    if (!recorded) file_.checkpoint();  // larger than the whole journal: what was done stands in the checkpoint instead
    return Enqueued{status_, op_};
}

void DeviceHost::drain(bool replaying) {
    Completion done;
    while (held_->poll(done)) {
        if (done.kind == OpKind::host) {
            const HostCall call{done.op, done.stream, done.client, done.cookie};
            if (!shared_) {
                host_calls_.push_back(call);
                continue;
            }
            // On a replay it may stand in the table already: the killed process had told it.
            HostCall* place = nullptr;
            for (HostCall& other : file_.header().host_calls) {
                if (other.op == done.op) place = &other;
                if (place == nullptr && other.op == 0) place = &other;
            }
            if (place != nullptr) *place = call;
        } else if (done.kind == OpKind::kernel && !replaying) {
            const Interval interval{
                done.submitted_ns, done.start_ns, done.end_ns, done.kernel, done.stream, done.client, 0};
            if (!shared_) {
                if (keep_intervals_) intervals_.push_back(interval);
            } else if (file_.header().keep_intervals != 0) {
                file_.add_interval(interval);
            }
        }
    }
}

Status DeviceHost::create_context(ContextId& out) {
    Command command{Kind::create_context};
    const Status status = run(command, nullptr, 0).status;
    out = made_;
    if (status == Status::ok && shared_) {
        file_.self().contexts |= std::uint64_t{1} << out;
        if (file_.self().context < 0) file_.self().context = out;
    }
    return status;
}

Status DeviceHost::destroy_context(ContextId context) {
    if (shared_) file_.self().contexts &= ~(std::uint64_t{1} << context);
    Command command{Kind::destroy_context};
    command.first = context;
    return run(command, nullptr, 0).status;
}

Status DeviceHost::create_stream(ContextId context, StreamOptions options, StreamId& out) {
    Command command{Kind::create_stream};
    command.first = context;
    const Status status = run(command, &options, sizeof options).status;
    out = made_;
    return status;
}

Status DeviceHost::destroy_stream(StreamId stream) {
    Command command{Kind::destroy_stream};
    command.first = stream;
    return run(command, nullptr, 0).status;
}

Status DeviceHost::create_event(EventId& out) {
    Command command{Kind::create_event};
    const Status status = run(command, nullptr, 0).status;
    out = made_;
    return status;
}

Status DeviceHost::destroy_event(EventId event) {
    Command command{Kind::destroy_event};
    command.first = event;
    return run(command, nullptr, 0).status;
}

Status DeviceHost::register_kernel(const KernelSpec& spec, KernelId& out) {
    Command command{Kind::register_kernel};
    const Status status = run(command, &spec, sizeof spec).status;
    out = made_;
    return status;
}

Enqueued DeviceHost::kernel(StreamId stream, KernelId kernel) {
    Command command{Kind::kernel, stream, kernel};
    command.at_ns = now();
    return run(command, nullptr, 0);
}

Enqueued DeviceHost::graph(StreamId stream, const KernelId* nodes, std::int32_t count) {
    Command command{Kind::graph, stream, count};
    command.at_ns = now();
    return run(command, nodes, static_cast<std::uint32_t>(sizeof(KernelId)) * static_cast<std::uint32_t>(count));
}

Enqueued DeviceHost::copy(StreamId stream, std::int64_t bytes, Direction direction) {
    Command command{Kind::copy, stream, static_cast<std::int32_t>(direction)};
    command.at_ns = now();
    command.bytes = bytes;
    return run(command, nullptr, 0);
}

Enqueued DeviceHost::event(StreamId stream, EventId event) {
    Command command{Kind::event, stream, event};
    command.at_ns = now();
    return run(command, nullptr, 0);
}

Enqueued DeviceHost::wait(StreamId stream, EventId event) {
    Command command{Kind::wait, stream, event};
    command.at_ns = now();
    return run(command, nullptr, 0);
}

Enqueued DeviceHost::host(StreamId stream, std::uint64_t cookie) {
    Command command{Kind::host, stream};
    command.at_ns = now();
    command.cookie = cookie;
    return run(command, nullptr, 0);
}

Status DeviceHost::host_done(StreamId stream) {
    Command command{Kind::host_done, stream};
    command.at_ns = now();
    return run(command, nullptr, 0).status;
}

void DeviceHost::post(std::uint32_t token) {
    Command command{Kind::post, static_cast<std::int32_t>(token)};
    command.at_ns = now();
    run(command, nullptr, 0);
}

bool DeviceHost::take_host_call(HostCall& out) {
    if (!shared_) {
        if (host_calls_.empty()) return false;
        out = host_calls_.front();
        host_calls_.pop_front();
        return true;
    }
    for (HostCall& call : file_.header().host_calls) {
        // The upper half of a cookie names the process that enqueued it.
        if (call.op == 0 || call.cookie >> 32 != client_) continue;
        out = call;
        call.op = 0;
        return true;
    }
    return false;
}

std::uint64_t DeviceHost::used_bytes() const {
    if (!shared_) return used_bytes_;
    std::uint64_t sum = 0;
    for (const SharedFile::Member& member : const_cast<SharedFile&>(file_).header().members) {
        if (member.pid != 0) sum += member.used_bytes;
    }
    return sum;
}

void DeviceHost::change_used(std::int64_t bytes) {
    std::uint64_t& used = shared_ ? file_.self().used_bytes : used_bytes_;
    used = static_cast<std::uint64_t>(static_cast<std::int64_t>(used) + bytes);
}

void DeviceHost::reap() {
    if (!shared_) return;
    const std::int64_t now = monotonic_ns();
    if (now - last_reap_ns_ < kReapEveryNs) return;
    last_reap_ns_ = now;
    for (int slot = file_.find_dead(); slot >= 0; slot = file_.find_dead()) {
        const SharedFile::Member& dead = file_.header().members[slot];
        for (std::int32_t i = 0; i < 64; ++i) {
            if ((dead.contexts >> i & 1) == 0) continue;
            Command command{Kind::destroy_context, i};
            run(command, nullptr, 0);
        }
        for (HostCall& call : file_.header().host_calls) {
            if (call.op != 0 && call.cookie >> 32 == dead.client) call.op = 0;
        }
        file_.free_slot(slot);
    }
}

}  // namespace tierline::fakecuda
