// Programs and pairs: every program runs through on every device, at the speed its arithmetic says; the set of pairs is whole.
// Prints how many kernels a second the engine simulates (a figure for reading, not a check).
#include <chrono>
#include <set>

#include "bench.hpp"
#include "check.hpp"

namespace {

// A host thread that follows a program in virtual time, as many loops as asked for.
struct Host {
    const Program& program;
    Device& device;
    std::vector<StreamId> streams;
    std::vector<EventId> events;
    std::vector<KernelId> kernels;
    std::vector<std::vector<KernelId>> graphs;
    std::size_t at = 0;
    std::int64_t now = 0;
    std::int64_t iterations = 0;
    std::int64_t kernels_launched = 0;

    Host(const Program& p, Device& d, ContextId context, std::uint32_t client, int priority) : program(p), device(d) {
        StreamOptions o;
        o.client = client;
        o.priority = priority;
        streams.resize(static_cast<std::size_t>(p.streams));
        for (StreamId& s : streams) require(d.create_stream(context, o, s));
        events.resize(static_cast<std::size_t>(p.events));
        for (EventId& e : events) require(d.create_event(e));
        for (const KernelSpec& k : p.kernels) {
            KernelId id = -1;
            require(d.register_kernel(fitted(d.spec(), k), id));
            kernels.push_back(id);
        }
        for (const auto& g : p.graphs) {
            graphs.emplace_back();
            for (std::uint32_t n : g) graphs.back().push_back(kernels[n]);
        }
    }
    bool waits() const {
        const Step& s = program.loop[at];
        if (s.kind == StepKind::synchronize) return !device.idle(streams[s.stream]);
        if (s.kind != StepKind::synchronize_all && s.kind != StepKind::end_iteration) return false;
        for (StreamId id : streams)
            if (!device.idle(id)) return true;
        return false;
    }
    void step() {
        const Step& s = program.loop[at];
        now += s.host_ns;
        const StreamId stream = streams[s.stream];
        Enqueued e;
        switch (s.kind) {
            case StepKind::launch:
                e = device.enqueue_kernel(stream, kernels[s.index], now);
                ++kernels_launched;
                break;
            case StepKind::graph:
                e = device.enqueue_graph(stream, graphs[s.index].data(),
                                         static_cast<std::int32_t>(graphs[s.index].size()), now);
                kernels_launched += static_cast<std::int64_t>(graphs[s.index].size());
                break;
            case StepKind::copy: e = device.enqueue_copy(stream, s.bytes, s.direction, now); break;
            case StepKind::record: e = device.enqueue_event(stream, events[s.index], now); break;
            case StepKind::wait_event: e = device.enqueue_wait(stream, events[s.index], now); break;
            case StepKind::post: device.spin_post(s.index, now); break;
            case StepKind::end_iteration: ++iterations; break;
            case StepKind::host:
            case StepKind::synchronize:
            case StepKind::synchronize_all: break;
        }
        require(e.status);
        at = (at + 1) % program.loop.size();
    }
};

// Steps all hosts in order of their clocks until each has done `loops`.
bool run_hosts(Device& device, std::vector<Host*> hosts, std::int64_t loops) {
    Completion c;
    for (;;) {
        Host* next = nullptr;
        bool all = true;
        for (Host* h : hosts) {
            if (h->iterations >= loops) continue;
            all = false;
            if (h->waits()) continue;
            h->now = std::max(h->now, h->program.loop[h->at].kind == StepKind::synchronize ||
                                              h->program.loop[h->at].kind == StepKind::end_iteration ||
                                              h->program.loop[h->at].kind == StepKind::synchronize_all
                                          ? device.now_ns()
                                          : h->now);
            if (next == nullptr || h->now < next->now) next = h;
        }
        if (all) return true;
        if (next != nullptr && (next->now <= device.next_time() || hosts.size() == 1)) next->step();
        else if (device.next_time() != never) device.advance(device.next_time());
        else if (next != nullptr) next->step();
        else return false;                               // stuck
        while (device.poll(c)) {}
    }
}

void every_program_runs_everywhere() {
    std::set<std::string> names;
    std::int64_t kernels = 0;
    const auto began = std::chrono::steady_clock::now();
    for (const Program& p : programs()) {
        CHECK(names.insert(p.name).second);
        CHECK(!p.what.empty() && !p.kernels.empty() && p.memory_bytes > 0 &&
              p.loop.back().kind == StepKind::end_iteration);
        CHECK((p.kind == ProgramKind::server) == (p.arrivals_per_s > 0));
        for (Gpu gpu : {Gpu::h200, Gpu::a100, Gpu::v100}) {
            Bench b(device_spec(gpu));
            Host host(p, b.device, b.context, 1, 0);
            CHECK(run_hosts(b.device, {&host}, 3));
            CHECK(b.device.device_idle() && b.device.truth().kernels_done == host.kernels_launched);
            kernels += host.kernels_launched;
            if (gpu == Gpu::h200 && p.kind == ProgramKind::server) {
                const double load = p.arrivals_per_s * double(host.now) / 3 * 1e-9;
                CHECK(load > 0.3 && load < 0.6);         // as stated in programs.cpp
            }
        }
    }
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    std::printf("%lld kernels alone: %.2f million a second\n", static_cast<long long>(kernels),
                double(kernels) / seconds * 1e-6);
}

void the_pairs_are_whole() {
    CHECK(pairs().size() == 12);
    std::set<std::string> names;
    const DeviceSpec d = device_spec(Gpu::h200);
    for (const Pair& p : pairs()) {
        CHECK(names.insert(p.name).second);
        const Program* high = find_program(p.high);
        const Program* low = find_program(p.best_effort);
        CHECK(high != nullptr && low != nullptr && high != low);
        if (high == nullptr || low == nullptr) continue;
        CHECK(high->memory_bytes + low->memory_bytes < d.memory_bytes);
        CHECK(low->kind == ProgramKind::closed_loop);
    }
    CHECK(find_program("none such") == nullptr && find_kernel("none such") == nullptr);
}

void pairs_run_together() {
    std::int64_t kernels = 0;
    const auto began = std::chrono::steady_clock::now();
    for (const Pair& pair : pairs()) {
        const Program& p = *find_program(pair.high);
        const Program& q = *find_program(pair.best_effort);
        double alone[2];
        for (int i : {0, 1}) {
            Bench b(device_spec(Gpu::h200));
            Host h(i == 0 ? p : q, b.device, b.context, 1, 0);
            CHECK(run_hosts(b.device, {&h}, 3));
            alone[i] = double(h.now) / 3;
        }
        Bench b(device_spec(Gpu::h200));
        Host high(p, b.device, b.context, 1, -5), low(q, b.device, b.context, 2, 0);
        const std::int64_t loops = 3;
        CHECK(run_hosts(b.device, {&high, &low}, loops));
        const Truth& t = b.device.truth();
        kernels += t.kernels_done;
        CHECK(t.shared_ns > 0);
        CHECK(t.sm_integral <= double(t.busy_ns) && t.bw_integral <= double(t.busy_ns));
        CHECK(double(high.now) / double(loops) >= alone[0] * 0.98);   // company never speeds anybody up
        std::printf("%-44s alone %8.1f %8.1f us; free: high %.2f times; shared %4.1f %%, peaks %.2f %.2f\n",
                    pair.name.c_str(), alone[0] / 1e3, alone[1] / 1e3, double(high.now) / double(loops) / alone[0],
                    100.0 * double(t.shared_ns) / double(t.busy_ns), t.shared_sm_peak, t.shared_bw_peak);
    }
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    std::printf("%lld kernels in pairs (simulated device): %.2f million a second\n", static_cast<long long>(kernels),
                double(kernels) / seconds * 1e-6);
}

}  // namespace

int main() {
    every_program_runs_everywhere();
    the_pairs_are_whole();
    pairs_run_together();
    return check_result();
}
