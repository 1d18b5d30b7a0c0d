#include "host.hpp"

#include <algorithm>
#include <stdexcept>

namespace tierline::sim {

namespace {

void check(fake::Status status, const fake::Program& program, const char* what) {
    if (status == fake::Status::ok) return;
    throw std::invalid_argument("program '" + program.name + "', " + what + ": " + fake::status_text(status));
}

std::vector<double> progress_of(const fake::Program& program, const fake::Device& device,
                                const std::vector<fake::KernelId>& kernels) {
    const auto alone_ns = [&](std::uint32_t kernel) {
        return double(device.alone_profile(kernels[kernel])->duration_ns);
    };
    std::vector<double> before;
    double sum = 0;
    for (const fake::Step& step : program.loop) {
        before.push_back(sum);
        sum += double(step.host_ns) * 0.001 + 1.0;  // so that a loop without kernels makes progress too
        if (step.kind == fake::StepKind::launch) sum += alone_ns(step.index);
        if (step.kind == fake::StepKind::graph)
            for (const std::uint32_t node : program.graphs[step.index]) sum += alone_ns(node);
    }
    for (double& value : before) value /= sum;
    return before;
}

void check_indices(const fake::Program& program) {
    const auto fail = [&](const char* what) {
        throw std::invalid_argument("program '" + program.name + "' " + what);
    };
    if (program.loop.empty()) fail("has no steps");
    if (program.streams < 1) fail("has no stream");
    bool waits = false;
    for (const auto& graph : program.graphs)
        for (const std::uint32_t node : graph)
            if (node >= program.kernels.size()) fail("has a graph of a kernel that it does not have");
    for (const fake::Step& step : program.loop) {
        using fake::StepKind;
        if (step.stream >= program.streams) fail("uses a stream that it does not have");
        if (step.kind == StepKind::launch && step.index >= program.kernels.size()) fail("launches an unknown kernel");
        if (step.kind == StepKind::graph && step.index >= program.graphs.size()) fail("launches an unknown graph");
        if ((step.kind == StepKind::record || step.kind == StepKind::wait_event) &&
            step.index >= static_cast<std::uint32_t>(program.events))
            fail("uses an event that it does not have");
        waits = waits || step.host_ns > 0 || step.kind == StepKind::launch || step.kind == StepKind::graph ||
                step.kind == StepKind::copy;
    }
    if (!waits && program.kind != fake::ProgramKind::server) fail("does nothing that takes time");
}

}  // namespace

Host make_host(fake::Device& device, const Scenario& scenario, int index) {
    Host host;
    host.spec = &scenario.clients[static_cast<std::size_t>(index)];
    host.index = index;
    const fake::Program& program = host.program();
    check_indices(program);

    fake::ContextId context{};
    check(device.create_context(context), program, "context");
    fake::StreamOptions options;
    options.client = static_cast<std::uint32_t>(index) + 1;
    // What the interposer does when a high-priority client makes a stream.
    options.priority = scenario.gated && host.spec->priority == Priority::high ? -1 : 0;
    if (scenario.best_effort_sms > 0) {
        const std::int32_t step = std::max(1, scenario.device.lane_granularity);
        const std::int32_t border =
            std::clamp((scenario.device.sms - scenario.best_effort_sms) / step * step, step, scenario.device.sms - 1);
        const bool high = host.spec->priority == Priority::high;
        options.first_sm = high ? 0 : border;
        options.sm_count = high ? border : scenario.device.sms - border;
    }
    for (int i = 0; i < program.streams; ++i) {
        Lane lane{};
        check(device.create_stream(context, options, lane.device), program, "streams");
        lane.slot = -1;
        host.lanes.push_back(std::move(lane));
    }
    host.events.resize(static_cast<std::size_t>(program.events));
    for (fake::EventId& event : host.events) check(device.create_event(event), program, "events");
    for (const fake::KernelSpec& spec : program.kernels) {
        fake::KernelId id{};
        check(device.register_kernel(spec, id), program, spec.name);
        host.kernels.push_back(id);
        // The interposer tells collectives by their name and cooperative launches by their call.
        host.exempt.push_back(spec.cooperative || spec.family == fake::Family::collective);
    }
    for (const auto& nodes : program.graphs) {
        std::vector<fake::KernelId> ids;
        for (const std::uint32_t node : nodes) ids.push_back(host.kernels[node]);
        host.graphs.push_back(std::move(ids));
    }
    host.progress = progress_of(program, device, host.kernels);
    for (const fake::Step& step : program.loop) host.ends_per_loop += step.kind == fake::StepKind::end_iteration;
    // Arrivals depend on the seed and the program only: the same alone and in company.
    std::uint64_t salt = scenario.seed * 0x9e3779b97f4a7c15ULL + 1;
    for (const char letter : program.name) salt = (salt ^ static_cast<unsigned char>(letter)) * 0x100000001b3ULL;
    host.arrivals = Rng(salt);
    host.ready_ns = host.next_arrival_ns = host.spec->start_ns;
    return host;
}

}  // namespace tierline::sim
