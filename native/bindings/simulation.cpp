// The simulated device, its programs and pairs, and the co-simulation with the core.
#include "region.hpp"

#include "tierline/sim/scenario.hpp"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <utility>

namespace tierline {

namespace bindings {
namespace {

using sim::Completions;
using sim::ProfileSource;

std::string name(Completions value) { return value == Completions::exact ? "exact" : "polled"; }
std::string name(ProfileSource value) {
    constexpr const char* kNames[] = {"exact", "noisy", "tagged", "none"};
    return kNames[static_cast<int>(value)];
}

// As `value_named`, for the enumerations of this file.
template <class Enum>
Enum chosen(const char* what, const std::string& given, int count) {
    for (int i = 0; i < count; ++i)
        if (name(static_cast<Enum>(i)) == given) return static_cast<Enum>(i);
    throw nb::value_error(("unknown " + std::string(what) + " '" + given + "'.").c_str());
}

struct NamedProfile : fake::AloneProfile {
    std::string name;
};

std::vector<NamedProfile> profiles(const fake::DeviceSpec& device, const fake::Program& program) {
    std::vector<NamedProfile> rows;
    for (const fake::KernelSpec& kernel : program.kernels)
        rows.push_back({fake::alone_profile(device, kernel), kernel.name});
    return rows;
}

fake::DeviceSpec device(const std::string& given) {
    fake::DeviceSpec spec{};
    if (!fake::device_spec_by_name(given.c_str(), spec))
        throw nb::value_error(("unknown simulated device '" + given + "'. Known: h200, a100, v100.").c_str());
    return spec;
}

void bind_truth(nb::module_& m) {
    nb::class_<fake::DeviceSpec>(m, "Device")
        .def_prop_ro("name", [](const fake::DeviceSpec& self) { return std::string(self.name); })
        .def_ro("sms", &fake::DeviceSpec::sms)
        .def_ro("memory_bytes", &fake::DeviceSpec::memory_bytes)
        .def_ro("dram_bytes_per_s", &fake::DeviceSpec::dram_bytes_per_s)
        .def_ro("tensor_flops_per_s", &fake::DeviceSpec::tensor_flops_per_s)
        .def_ro("fp32_flops_per_s", &fake::DeviceSpec::fp32_flops_per_s);
    nb::class_<NamedProfile>(m, "AloneProfile")
        .def_ro("name", &NamedProfile::name)
        .def_ro("duration_ns", &NamedProfile::duration_ns)
        .def_ro("sm_util", &NamedProfile::sm_util)
        .def_ro("bw_util", &NamedProfile::bw_util)
        .def_ro("waves", &NamedProfile::waves)
        .def_ro("occupancy_blocks", &NamedProfile::occupancy_blocks)
        .def_ro("sm_blocks", &NamedProfile::sm_blocks)
        .def_ro("flops", &NamedProfile::flops)
        .def_ro("dram_bytes", &NamedProfile::dram_bytes);
    nb::class_<fake::Program>(m, "Program")
        .def_ro("name", &fake::Program::name)
        .def_ro("what", &fake::Program::what)
        .def_prop_ro("is_server",
                     [](const fake::Program& self) { return self.kind == fake::ProgramKind::server; })
        .def_rw("arrivals_per_s", &fake::Program::arrivals_per_s)
        .def_ro("streams", &fake::Program::streams)
        .def_ro("memory_bytes", &fake::Program::memory_bytes);
    nb::class_<fake::Pair>(m, "Pair")
        .def_ro("name", &fake::Pair::name)
        .def_ro("high", &fake::Pair::high)
        .def_ro("best_effort", &fake::Pair::best_effort)
        .def_ro("what", &fake::Pair::what);
    m.def("device", &device, nb::arg("name"));
    m.def("programs", &fake::programs);
    m.def("pairs", &fake::pairs);
    m.def("alone_profiles", &profiles, nb::arg("device"), nb::arg("program"), nb::call_guard<nb::gil_scoped_release>());
}

void bind_scenario(nb::module_& m) {
    using sim::ClientSpec;
    using sim::Scenario;
    nb::class_<ClientSpec>(m, "ClientSpec")
        .def("__init__",
             [](ClientSpec* self, const fake::Program& program, const std::string& priority, Nanoseconds start_ns,
                std::int64_t iterations) {
                 Priority parsed{};
                 parse(priority, parsed);
                 new (self) ClientSpec{program, parsed, start_ns, iterations};
             },
             nb::arg("program"), nb::arg("priority"), nb::kw_only(), nb::arg("start_ns") = 0,
             nb::arg("iterations") = 0)
        .def_ro("program", &ClientSpec::program)
        .def_prop_ro("priority", named(&ClientSpec::priority))
        .def_ro("start_ns", &ClientSpec::start_ns)
        .def_ro("iterations", &ClientSpec::iterations);
    nb::class_<Scenario>(m, "Scenario")
        .def("__init__",
             [](Scenario* self, const fake::DeviceSpec& device, std::vector<ClientSpec> clients) {
                 new (self) Scenario{};
                 self->device = device;
                 self->clients = std::move(clients);
             },
             nb::arg("device"), nb::arg("clients"))
        .def_ro("device", &Scenario::device)
        .def_ro("clients", &Scenario::clients)
        .def_rw("config", &Scenario::config)
        .def_rw("gated", &Scenario::gated)
        .def_rw("mps", &Scenario::mps)
        .def_rw("best_effort_sms", &Scenario::best_effort_sms)
        .def_prop_rw("completions", [](const Scenario& self) { return name(self.completions); },
                     [](Scenario& self, const std::string& given) {
                         self.completions = chosen<Completions>("setting of completions", given, 2);
                     })
        .def_prop_rw("profiles", [](const Scenario& self) { return name(self.profiles); },
                     [](Scenario& self, const std::string& given) {
                         self.profiles = chosen<ProfileSource>("source of profiles", given, 4);
                     })
        .def_rw("noise", &Scenario::noise)
        .def_rw("seed", &Scenario::seed)
        .def_rw("duration_ns", &Scenario::duration_ns)
        .def_rw("warmup_ns", &Scenario::warmup_ns)
        .def_rw("gate_high_ns", &Scenario::gate_high_ns)
        .def_rw("gate_best_effort_ns", &Scenario::gate_best_effort_ns)
        .def_rw("poll_ns", &Scenario::poll_ns)
        .def_rw("wake_ns", &Scenario::wake_ns)
        .def_rw("keep_sums", &Scenario::keep_sums)
        .def_rw("judged_alpha", &Scenario::judged_alpha)
        .def_rw("judged_beta", &Scenario::judged_beta);
}

void bind_outcome(nb::module_& m) {
    using sim::ClientOutcome;
    using sim::ExcessWindow;
    using sim::Outcome;
    using sim::SumsAt;
    nb::class_<ClientOutcome>(m, "ClientOutcome")
        .def_ro("program", &ClientOutcome::program)
        .def_prop_ro("priority", named(&ClientOutcome::priority))
        .def_ro("iterations", &ClientOutcome::iterations)
        .def_ro("per_s", &ClientOutcome::per_s)
        .def_ro("latencies_ns", &ClientOutcome::latencies_ns)
        .def_ro("unfinished", &ClientOutcome::unfinished)
        .def_ro("p50_ns", &ClientOutcome::p50_ns)
        .def_ro("p99_ns", &ClientOutcome::p99_ns)
        .def_ro("mean_ns", &ClientOutcome::mean_ns)
        .def_ro("statistics", &ClientOutcome::statistics);
    nb::class_<SumsAt>(m, "SumsAt")
        .def_ro("at_ns", &SumsAt::at_ns)
        .def_ro("sm", &SumsAt::sm)
        .def_ro("bw", &SumsAt::bw)
        .def_ro("clients", &SumsAt::clients);
    nb::class_<ExcessWindow>(m, "ExcessWindow")
        .def_ro("from_launch", &ExcessWindow::from)
        .def_ro("to_launch", &ExcessWindow::to)
        .def_ro("most", &ExcessWindow::most)
        .def_ro("excess_ns", &ExcessWindow::excess_ns)
        .def_ro("shared_ns", &ExcessWindow::shared_ns);
    nb::class_<Outcome>(m, "Outcome")
        .def_ro("clients", &Outcome::clients)
        .def_ro("end_ns", &Outcome::end_ns)
        .def_ro("stuck", &Outcome::stuck)
        .def_ro("shared_sm_peak", &Outcome::shared_sm_peak)
        .def_ro("shared_bw_peak", &Outcome::shared_bw_peak)
        .def_ro("busy_ns", &Outcome::busy_ns)
        .def_ro("shared_ns", &Outcome::shared_ns)
        .def_ro("excess_ns", &Outcome::excess_ns)
        .def_ro("excess_most", &Outcome::excess_most)
        .def_ro("launches", &Outcome::launches)
        .def_ro("last_excess_launch", &Outcome::last_excess_launch)
        .def_ro("excess", &Outcome::excess)
        .def_ro("sm_used", &Outcome::sm_used)
        .def_ro("bw_used", &Outcome::bw_used)
        .def_ro("predicted_sm_peak_ppm", &Outcome::predicted_sm_peak_ppm)
        .def_ro("predicted_bw_peak_ppm", &Outcome::predicted_bw_peak_ppm)
        .def_ro("events", &Outcome::events)
        .def_ro("fences", &Outcome::fences)
        .def_ro("sums", &Outcome::sums);
}

}  // namespace

void bind_simulation(nb::module_& m) {
    bind_truth(m);
    bind_scenario(m);
    bind_outcome(m);
    m.def("simulate", &sim::simulate, nb::arg("scenario"), nb::call_guard<nb::gil_scoped_release>());
    m.def("random_scenario", &sim::random_scenario, nb::arg("device"), nb::arg("seed"),
          nb::arg("duration_ns") = 10 * kMillisecond, nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace bindings
}  // namespace tierline
