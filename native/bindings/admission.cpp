// The state machine of the core over a private region, for tests and for whoever wants to see it decide.
#include "region.hpp"

#include <nanobind/stl/array.h>
#include <nanobind/stl/vector.h>

#include <vector>

namespace tierline::bindings {
namespace {

struct AdmissionHandle {
    RegionHandle region;
    Admission admission;

    explicit AdmissionHandle(const Config& config)
        : region{std::make_shared<MappedRegion>(MappedRegion::in_memory(config))}, admission(*region) {}
};

// Numbers come from outside: one that nobody has is an error here and never a wrong address in the core.
int known(bool exists, const char* what, int number) {
    if (exists) return number;
    throw nb::index_error(("there is no " + std::string(what) + " " + std::to_string(number)).c_str());
}
int client_of(const AdmissionHandle& self, int slot) {
    return known(slot >= 0 && slot < kMaxClients && self.region->clients[slot].state == 1, "client", slot);
}
int stream_of(const AdmissionHandle& self, int slot) {
    return known(slot >= 0 && slot < self.region->streams_used && self.region->streams[slot].client >= 0, "stream", slot);
}
int kernel_of(const AdmissionHandle& self, int row) {
    return known(row == -1 || (row >= 0 && row < kMaxKernels && self.region->kernels[row].key != 0), "kernel", row);
}
int waiter_of(const AdmissionHandle& self, int slot) {
    return known(slot >= 0 && slot < kMaxWaiters && self.region->waiters[slot].state != 0, "waiter", slot);
}

std::vector<int> decide(AdmissionHandle& self, Nanoseconds now_ns) {
    std::vector<int> admitted(kMaxWaiters);
    admitted.resize(static_cast<std::size_t>(self.admission.decide(now_ns, admitted.data(), kMaxWaiters)));
    return admitted;
}

int add_kernel(AdmissionHandle& self, const std::string& name, std::array<std::uint32_t, 3> grid,
               std::array<std::uint32_t, 3> block, std::uint32_t occupancy, double flops, double bytes) {
    KernelFacts facts;
    facts.name = name;
    facts.grid = grid;
    facts.block = block;
    facts.occupancy = occupancy;
    facts.flops = flops;
    facts.bytes = bytes;
    return self.admission.add_kernel(kernel_key(name, grid, block, 0), facts);
}

}  // namespace

void bind_admission(nb::module_& m) {
    nb::class_<Ticket>(m, "Ticket")
        .def_prop_ro("reason", named(&Ticket::reason))
        .def_ro("waiter", &Ticket::waiter)
        .def_ro("stream", &Ticket::stream)
        .def_ro("seq", &Ticket::seq)
        .def_ro("track", &Ticket::track)
        .def_ro("learn", &Ticket::learn)
        .def_prop_ro("admitted", &Ticket::admitted);

    using Handle = AdmissionHandle;
    const auto now = nb::arg("now_ns");
    nb::class_<Handle>(m, "Admission")
        .def(nb::init<const Config&>(), nb::arg("config"))
        .def_prop_ro("region", [](const Handle& self) { return self.region; })
        .def("join",
             [](Handle& self, const std::string& label, const std::string& priority, std::int64_t cap, Nanoseconds at) {
                 Priority parsed{};
                 parse(priority, parsed);
                 return self.admission.join(label, parsed, cap, 0, at);
             },
             nb::arg("label"), nb::arg("priority"), nb::arg("memory_cap_bytes") = 0, nb::arg("now_ns") = 0)
        .def("leave", [](Handle& self, int client, Nanoseconds at) { self.admission.leave(client_of(self, client), at); },
             nb::arg("client"), now)
        .def("open_stream", [](Handle& self, int client, std::uint64_t id) { return self.admission.open_stream(client_of(self, client), id); },
             nb::arg("client"), nb::arg("id"))
        .def("close_stream", [](Handle& self, int stream, Nanoseconds at) { self.admission.close_stream(stream_of(self, stream), at); },
             nb::arg("stream"), now)
        .def("add_kernel", &add_kernel, nb::arg("name"), nb::kw_only(),
             nb::arg("grid") = std::array<std::uint32_t, 3>{1, 1, 1},
             nb::arg("block") = std::array<std::uint32_t, 3>{1, 1, 1}, nb::arg("occupancy") = 1,
             nb::arg("flops") = 0.0, nb::arg("bytes") = 0.0)
        .def("set_profile",
             [](Handle& self, int kernel, const Demand& demand, const std::string& source) {
                 Source parsed{};
                 parse(source, parsed);
                 self.admission.set_profile(kernel_of(self, kernel), demand, parsed);
             },
             nb::arg("kernel"), nb::arg("demand"), nb::arg("source") = "counters")
        .def("is_known", [](const Handle& self, int kernel) { return self.admission.is_known(kernel_of(self, kernel)); },
             nb::arg("kernel"))
        .def("request",
             [](Handle& self, int client, int stream, int kernel, Nanoseconds at, bool exempt) {
                 const int launched_into = stream < 0 ? -1 : stream_of(self, stream);
                 return self.admission.request(
                     {client_of(self, client), launched_into, kernel_of(self, kernel), exempt}, at);
             },
             nb::arg("client"), nb::arg("stream"), nb::arg("kernel"), now, nb::arg("exempt") = false)
        .def("completed",
             [](Handle& self, int stream, std::uint64_t seq, Nanoseconds at) {
                 return self.admission.completed(stream_of(self, stream), seq, at);
             },
             nb::arg("stream"), nb::arg("seq"), now)
        .def("learned", [](Handle& self, int kernel, Nanoseconds ns) { self.admission.learned(kernel_of(self, kernel), ns); },
             nb::arg("kernel"), nb::arg("duration_ns"))
        .def("decide", &decide, now)
        .def("deadline_ns", [](const Handle& self) { return self.admission.deadline_ns(); })
        .def("take", [](Handle& self, int waiter, Nanoseconds at) { return self.admission.take(waiter_of(self, waiter), at); },
             nb::arg("waiter"), now)
        .def("iteration_ended",
             [](Handle& self, int client, Nanoseconds at) { self.admission.iteration_ended(client_of(self, client), at); },
             nb::arg("client"), now)
        .def("reserve_memory",
             [](Handle& self, int client, std::int64_t bytes) { return self.admission.reserve_memory(client_of(self, client), bytes); },
             nb::arg("client"), nb::arg("size_bytes"))
        .def("release_memory",
             [](Handle& self, int client, std::int64_t bytes) { self.admission.release_memory(client_of(self, client), bytes); },
             nb::arg("client"), nb::arg("size_bytes"));
}

}  // namespace tierline::bindings
