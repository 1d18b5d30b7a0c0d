// The co-simulation: programs on their host threads, the admission that the interposer runs, and the device, on one
// virtual clock. Nothing ticks: the clock goes to the earliest of the device's next event, the next host thread that is
// ready, the poller's next turn and the admission's deadline. Over 400 lines: host threads, gate and device touch one clock
// and one set of queues, whose order of events is read together.
#include "host.hpp"
#include "measures.hpp"
#include "tierline/admission.hpp"

#include <algorithm>
#include <stdexcept>

namespace tierline::sim {

namespace {

constexpr std::size_t kDriverQueue = 1024;  // launches of a stream that the driver takes before a launch blocks
constexpr int kMostAtOneInstant = 100'000;  // steps without the clock moving on: something loops

class Cosim {
public:
    explicit Cosim(const Scenario& scenario);
    Outcome run();

private:
    Nanoseconds next_ns() const;
    void hear_of_ends();
    void release(Host& host, Lane& lane, const fake::Completion& completion);
    void poll();
    bool wants_fences() const;
    Nanoseconds next_turn_ns() const { return (now_ns_ / scenario_.poll_ns + 1) * scenario_.poll_ns; }
    void decide();
    bool resume_synchronised(Host& host);

    void step(Host& host);
    void join(Host& host);
    void next_request(Host& host);
    void call(Host& host);
    void ask(Host& host);
    void submit(Host& host);
    void go_on(Host& host);
    void end_iteration(Host& host);
    void after(Host& host, Nanoseconds delay_ns, HostState state) {
        host.ready_ns = now_ns_ + delay_ns;
        host.state = state;
    }
    void hold(Host& host, HostState state) {
        host.ready_ns = kNever;
        host.state = state;
    }
    bool is_empty(const Host& host) const {
        return std::all_of(host.lanes.begin(), host.lanes.end(),
                           [&](const Lane& lane) { return device_.idle(lane.device); });
    }
    Nanoseconds gate_ns(const Host& host) const {
        if (!scenario_.gated) return 0;
        return host.spec->priority == Priority::high ? scenario_.gate_high_ns : scenario_.gate_best_effort_ns;
    }

    const Scenario& scenario_;
    fake::DeviceStatePtr memory_;
    fake::Device device_;
    MappedRegion region_;
    Admission admission_;
    std::vector<Host> hosts_;
    std::vector<std::pair<int, int>> lane_of_;  // device stream -> (host, lane)
    Outcome out_;
    TruthMeter truth_;
    Nanoseconds now_ns_ = 0;
    Nanoseconds poll_at_ns_ = kNever;
    bool released_ = false;  // the admission has to decide
    bool warm_ = false;
};

Config config_of(const Scenario& scenario) {
    Config config = scenario.config;
    config.device.sms = scenario.device.sms;
    config.device.flops_per_s = scenario.device.tensor_flops_per_s;
    config.device.bytes_per_s = scenario.device.dram_bytes_per_s;
    config.device.memory_bytes = scenario.device.memory_bytes;
    const bool polled = scenario.completions == Completions::polled;
    if (polled && config.resolution_ns == 0) config.resolution_ns = scenario.poll_ns;
    return config;
}

const Scenario& checked(const Scenario& scenario) {
    const auto fail = [](const char* what) { throw std::invalid_argument(what); };
    if (scenario.clients.empty() || scenario.clients.size() > static_cast<std::size_t>(kMaxClients))
        fail("between 1 and 64 clients are needed");
    if (scenario.duration_ns <= 0 || scenario.warmup_ns < 0 || scenario.warmup_ns >= scenario.duration_ns)
        fail("0 <= warmup_ns < duration_ns is needed");
    if (scenario.poll_ns <= 0 || scenario.wake_ns < 0 || scenario.gate_high_ns < 0 || scenario.gate_best_effort_ns < 0)
        fail("poll_ns must be above 0 and no cost below 0");
    for (const ClientSpec& client : scenario.clients)
        if (client.program.kind == fake::ProgramKind::server && client.program.arrivals_per_s <= 0)
            fail("a server needs arrivals_per_s above 0");
    return scenario;
}

Cosim::Cosim(const Scenario& scenario)
    : scenario_(checked(scenario)),
      memory_(fake::new_device_state()),
      device_(*memory_),
      region_(MappedRegion::in_memory(config_of(scenario))),
      admission_(*region_),
      truth_(scenario, out_) {
    device_.reset(scenario.device, scenario.seed, scenario.mps);
    device_.log_truth(true);
    hosts_.reserve(scenario.clients.size());
    for (int i = 0; i < static_cast<int>(scenario.clients.size()); ++i) {
        hosts_.push_back(make_host(device_, scenario, i));
        Host& host = hosts_.back();
        host.rows = add_profiles(admission_, device_, scenario, host.program(), host.kernels);
        for (int l = 0; l < static_cast<int>(host.lanes.size()); ++l) {
            const auto stream = static_cast<std::size_t>(host.lanes[static_cast<std::size_t>(l)].device);
            if (lane_of_.size() <= stream) lane_of_.resize(stream + 1, {-1, -1});
            lane_of_[stream] = {i, l};
        }
    }
}

// --- the clock ----------------------------------------------------------------------------------------------------

Nanoseconds Cosim::next_ns() const {
    Nanoseconds next = std::min(device_.next_time(), poll_at_ns_);
    for (const Host& host : hosts_) next = std::min(next, host.ready_ns);
    if (scenario_.gated) next = std::min(next, admission_.deadline_ns());
    if (!warm_) next = std::min(next, scenario_.warmup_ns);
    return std::max(next, now_ns_);
}

Outcome Cosim::run() {
    int still = 0;
    while (true) {
        const Nanoseconds next = next_ns();
        const bool all_gone =
            std::all_of(hosts_.begin(), hosts_.end(), [](const Host& h) { return h.state == HostState::gone; });
        if (all_gone || next >= scenario_.duration_ns) {
            out_.stuck = !all_gone && next == kNever;
            now_ns_ = all_gone ? now_ns_ : scenario_.duration_ns;
            break;
        }
        still = next == now_ns_ ? still + 1 : 0;
        if (still > kMostAtOneInstant) {
            out_.stuck = true;
            break;
        }
        now_ns_ = next;
        device_.advance(now_ns_);
        hear_of_ends();
        truth_.read(device_, out_.launches);
        if (now_ns_ >= poll_at_ns_) poll();
        if (!warm_ && now_ns_ >= scenario_.warmup_ns) {
            warm_ = true;
            for (Host& host : hosts_) host.done_at_warmup = host.state == HostState::absent ? 0.0 : host.done();
        }
        if (scenario_.gated && (released_ || admission_.deadline_ns() <= now_ns_)) decide();
        for (Host& host : hosts_) {
            if (host.ready_ns <= now_ns_) step(host);
            if (released_) decide();
        }
        if (poll_at_ns_ == kNever && wants_fences()) poll_at_ns_ = next_turn_ns();
    }
    truth_.finish(now_ns_, out_.launches);
    out_.end_ns = now_ns_;
    const fake::Truth& truth = device_.truth();
    if (truth.completions_lost + truth.samples_lost > 0) throw std::logic_error("the device's rings overflowed");
    if (now_ns_ > 0) {
        out_.sm_used = truth.sm_integral / double(now_ns_);
        out_.bw_used = truth.bw_integral / double(now_ns_);
    }
    out_.predicted_sm_peak_ppm = region_->peak_sm_ppm;
    out_.predicted_bw_peak_ppm = region_->peak_bw_ppm;
    for (const Host& host : hosts_) {
        ClientOutcome client = outcome_of(host, scenario_.warmup_ns, now_ns_);
        if (scenario_.gated && host.client >= 0) client.statistics = region_->clients[host.client].statistics;
        out_.clients.push_back(std::move(client));
    }
    return std::move(out_);
}

// --- completions ----------------------------------------------------------------------------------------------------

void Cosim::hear_of_ends() {
    fake::Completion completion;
    while (device_.poll(completion)) {
        const auto [h, l] = lane_of_[static_cast<std::size_t>(completion.stream)];
        Host& host = hosts_[static_cast<std::size_t>(h)];
        if (completion.kind == fake::OpKind::kernel) release(host, host.lanes[static_cast<std::size_t>(l)], completion);
        resume_synchronised(host);
    }
}

// The device has ended a kernel of the lane.
void Cosim::release(Host& host, Lane& lane, const fake::Completion& completion) {
    if (lane.in_flight.empty() || completion.op > lane.in_flight.front().op) return;
    Pending& first = lane.in_flight.front();
    if (first.began_ns < 0) first.began_ns = completion.start_ns;
    if (completion.op < first.op) return;  // a node of a graph that goes on
    const Pending ended = first;
    lane.in_flight.pop_front();
    // A full driver queue held the thread.
    if (host.state == HostState::submit && host.ready_ns == kNever) host.ready_ns = now_ns_;
    if (!scenario_.gated || ended.seq == 0) return;
    if (ended.row >= 0) {
        admission_.learned(ended.row, completion.end_ns - ended.began_ns);
        released_ = true;
    }
    if (scenario_.completions == Completions::exact) {
        released_ = admission_.completed(lane.slot, ended.seq, now_ns_) || released_;
    } else if (ended.watched) {
        lane.seen = ended.seq;
        poll_at_ns_ = std::min(poll_at_ns_, next_turn_ns());
    }
}

// The poller's turn: tells what its events show, and puts fences behind launches that no event watches.
void Cosim::poll() {
    poll_at_ns_ = kNever;
    for (Host& host : hosts_) {
        for (Lane& lane : host.lanes) {
            if (lane.slot < 0 || host.state == HostState::gone) continue;
            if (lane.seen != 0) {
                released_ = admission_.completed(lane.slot, lane.seen, now_ns_) || released_;
                lane.seen = 0;
            }
            Stream& stream = region_->streams[lane.slot];
            if (region_->contended.load(std::memory_order_relaxed) == 0 || stream.untracked == 0) continue;
            // A fence sees the end of what the driver has; a launch that is admitted and on its way is not behind it.
            if (lane.submitted < stream.launched) continue;
            stream.untracked = 0;
            ++out_.fences;
            if (lane.in_flight.empty()) {
                lane.seen = stream.launched;  // it has passed already: seen at the next turn
                poll_at_ns_ = next_turn_ns();
            } else {
                lane.in_flight.back().watched = true;
            }
        }
    }
}

bool Cosim::wants_fences() const {
    if (!scenario_.gated || scenario_.completions == Completions::exact) return false;
    if (region_->contended.load(std::memory_order_relaxed) == 0) return false;
    for (const Host& host : hosts_)
        for (const Lane& lane : host.lanes)
            if (lane.slot >= 0 && host.state != HostState::gone && region_->streams[lane.slot].untracked > 0 &&
                lane.submitted == region_->streams[lane.slot].launched)
                return true;
    return false;
}

void Cosim::decide() {
    released_ = false;
    int admitted[kMaxWaiters];
    const int count = admission_.decide(now_ns_, admitted, kMaxWaiters);
    for (int i = 0; i < count; ++i) {
        for (Host& host : hosts_) {
            if (host.state != HostState::gated || host.waiter != admitted[i]) continue;
            host.ticket = admission_.take(host.waiter, now_ns_);
            host.waiter = -1;
            after(host, scenario_.wake_ns, HostState::submit);
        }
    }
}

// --- host threads ---------------------------------------------------------------------------------------------------

// Runs the thread until it waits for something or for a later time.
void Cosim::step(Host& host) {
    while (host.ready_ns <= now_ns_) {
        switch (host.state) {
            case HostState::absent: join(host); break;
            case HostState::next_request: next_request(host); break;
            case HostState::begin: {
                const bool launches =
                    host.now().kind == fake::StepKind::launch || host.now().kind == fake::StepKind::graph;
                after(host, host.now().host_ns + (launches ? gate_ns(host) : 0), HostState::call);
                break;
            }
            case HostState::call: call(host); break;
            case HostState::submit: submit(host); break;
            case HostState::gated:
            case HostState::synchronising:
            case HostState::draining:
            case HostState::gone: host.ready_ns = kNever; break;
        }
    }
}

void Cosim::join(Host& host) {
    if (scenario_.gated) {
        host.client = admission_.join(host.program().name, host.spec->priority, 0, 0, now_ns_);
        if (host.client < 0) throw std::invalid_argument("more clients than the region holds");
        for (Lane& lane : host.lanes) {
            lane.slot = admission_.open_stream(host.client, static_cast<std::uint64_t>(lane.device) + 1);
        }
    }
    host.began_ns = now_ns_;
    if (host.is_server()) host.next_arrival_ns = now_ns_ + host.gap_ns(host.arrivals);
    after(host, 0, host.is_server() ? HostState::next_request : HostState::begin);
}

void Cosim::next_request(Host& host) {
    if (host.next_arrival_ns > now_ns_) {
        host.ready_ns = host.next_arrival_ns;
        return;
    }
    host.began_ns = host.next_arrival_ns;
    host.next_arrival_ns += host.gap_ns(host.arrivals);
    host.state = HostState::begin;
}

void Cosim::call(Host& host) {
    const fake::Step& now = host.now();
    Lane& lane = host.lanes[now.stream];
    switch (now.kind) {
        case fake::StepKind::launch:
        case fake::StepKind::graph: return ask(host);
        case fake::StepKind::copy: device_.enqueue_copy(lane.device, now.bytes, now.direction, now_ns_); break;
        case fake::StepKind::host: break;
        case fake::StepKind::record: device_.enqueue_event(lane.device, host.events[now.index], now_ns_); break;
        case fake::StepKind::wait_event: device_.enqueue_wait(lane.device, host.events[now.index], now_ns_); break;
        case fake::StepKind::synchronize:
        case fake::StepKind::synchronize_all:
            hold(host, HostState::synchronising);
            resume_synchronised(host);
            return;
        case fake::StepKind::post: device_.spin_post(now.index, now_ns_); break;
        case fake::StepKind::end_iteration: return end_iteration(host);
    }
    go_on(host);
}

// A launch comes to the gate.
void Cosim::ask(Host& host) {
    host.ticket = Ticket{};
    if (scenario_.gated) {
        const fake::Step& now = host.now();
        const bool graph = now.kind == fake::StepKind::graph;
        const int row = graph ? host.rows.graphs[now.index] : host.rows.kernels[now.index];
        const bool exempt = !graph && host.exempt[now.index];
        host.ticket = admission_.request({host.client, host.lanes[now.stream].slot, row, exempt}, now_ns_);
        if (!host.ticket.admitted()) {
            host.waiter = host.ticket.waiter;
            hold(host, HostState::gated);
            decide();  // as the arbiter does: a newcomer may go at once, and then its thread never slept
            if (host.state == HostState::submit) host.ready_ns = now_ns_;
            return;
        }
    }
    after(host, 0, HostState::submit);
}

void Cosim::submit(Host& host) {
    const fake::Step& now = host.now();
    Lane& lane = host.lanes[now.stream];
    fake::Enqueued enqueued;
    if (lane.in_flight.size() < kDriverQueue) {
        if (now.kind == fake::StepKind::graph) {
            const auto& nodes = host.graphs[now.index];
            const auto count = static_cast<std::int32_t>(nodes.size());
            enqueued = device_.enqueue_graph(lane.device, nodes.data(), count, now_ns_);
        } else {
            enqueued = device_.enqueue_kernel(lane.device, host.kernels[now.index], now_ns_);
        }
    } else {
        enqueued.status = fake::Status::operations_full;
    }
    if (enqueued.status == fake::Status::operations_full) return hold(host, HostState::submit);
    if (enqueued.status != fake::Status::ok)
        throw std::invalid_argument("program '" + host.program().name + "': " + fake::status_text(enqueued.status));
    const Ticket& ticket = host.ticket;
    const bool graph = now.kind == fake::StepKind::graph;
    const int row = graph ? (scenario_.gated ? host.rows.graphs[now.index] : -1)
                          : (scenario_.gated ? host.rows.kernels[now.index] : -1);
    lane.in_flight.push_back({enqueued.op, ticket.seq, ticket.learn ? row : -1, ticket.track || ticket.learn, -1});
    lane.submitted = std::max(lane.submitted, ticket.seq);
    out_.events += ticket.learn ? 2 : ticket.track ? 1 : 0;
    ++out_.launches;
    go_on(host);
}

void Cosim::go_on(Host& host) {
    if (++host.step == host.program().loop.size()) {
        host.step = 0;
        ++host.loops;
    }
    if (host.spec->iterations > 0 && host.iterations >= host.spec->iterations) {
        hold(host, HostState::draining);
        resume_synchronised(host);
        return;
    }
    const bool serves = host.is_server() && host.step == 0;
    after(host, 0, serves ? HostState::next_request : HostState::begin);
}

void Cosim::end_iteration(Host& host) {
    ++host.iterations;
    if (host.began_ns >= scenario_.warmup_ns) host.latencies_ns.push_back(now_ns_ - host.began_ns);
    host.began_ns = now_ns_;
    go_on(host);
}

// Lets the thread go on when what it waits for has ended; the admission learns of it as the interposer tells it.
bool Cosim::resume_synchronised(Host& host) {
    const bool drains = host.state == HostState::draining;
    if (host.state != HostState::synchronising && !drains) return false;
    const bool all = drains || host.now().kind == fake::StepKind::synchronize_all;
    if (all ? !is_empty(host) : !device_.idle(host.lanes[host.now().stream].device)) return false;
    if (scenario_.gated) {
        for (Lane& lane : host.lanes) {
            if (lane.slot < 0 || !device_.idle(lane.device)) continue;
            if (!all && &lane != &host.lanes[host.now().stream]) continue;
            released_ = admission_.completed(lane.slot, region_->streams[lane.slot].launched, now_ns_) || released_;
            lane.seen = 0;
        }
        if (drains) {
            admission_.leave(host.client, now_ns_);
            released_ = true;
        } else {
            released_ = admission_.iteration_ended(host.client, now_ns_) || released_;
        }
    }
    if (drains) {
        hold(host, HostState::gone);
    } else {
        go_on(host);
    }
    return true;
}

}  // namespace

Outcome simulate(const Scenario& scenario) { return Cosim(scenario).run(); }

}  // namespace tierline::sim
