// What can be read from a region: copies of its rows, each with its slot, never live references.
#include "region.hpp"

#include <nanobind/stl/array.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <vector>

namespace tierline::bindings {
namespace {

struct ClientRow : Client {
    int slot;
};
struct KernelRow : Kernel {
    int row;
};
// How long one client waited for another.
struct Wait {
    int client;
    int waited_for;
    Nanoseconds wait_ns;
};
// A launch that waits now.
struct WaiterRow {
    int slot, client, stream, kernel, blamed;
    Reason reason;
    std::uint64_t key;
    Demand demand;
    Nanoseconds since_ns;
};
struct StreamRow {
    int slot, client;
    std::uint64_t id, launched, done;
    std::uint32_t count;
    std::int32_t untracked;
    std::int64_t queued_ns;
    Demand peak;
};

std::vector<ClientRow> clients(const RegionHandle& region) {
    std::vector<ClientRow> rows;
    for (int slot = 0; slot < kMaxClients; ++slot) {
        const Client& client = region->clients[slot];
        if (client.state) rows.push_back({client, slot});
    }
    return rows;
}

std::vector<KernelRow> kernels(const RegionHandle& region) {
    std::vector<KernelRow> rows;
    for (int row = 0; row < kMaxKernels; ++row) {
        const Kernel& kernel = region->kernels[row];
        if (kernel.key) rows.push_back({kernel, row});
    }
    return rows;
}

std::vector<Wait> waits(const RegionHandle& region) {
    std::vector<Wait> rows;
    for (int client = 0; client < kMaxClients; ++client)
        for (int other = 0; other < kMaxClients; ++other)
            if (const Nanoseconds ns = region->waited_for_ns[client][other]) rows.push_back({client, other, ns});
    return rows;
}

std::vector<WaiterRow> waiters(const RegionHandle& region) {
    std::vector<WaiterRow> rows;
    for (int slot = 0; slot < kMaxWaiters; ++slot) {
        const Waiter& w = region->waiters[slot];
        if (w.state == 1)
            rows.push_back({slot, w.client, w.stream, w.kernel, w.blamed, w.reason, w.key, w.demand, w.since_ns});
    }
    return rows;
}

std::vector<StreamRow> streams(const RegionHandle& region) {
    std::vector<StreamRow> rows;
    for (int slot = 0; slot < kMaxStreams; ++slot) {
        const Stream& s = region->streams[slot];
        if (s.client >= 0 && s.launched)
            rows.push_back(
                {slot, s.client, s.id, s.launched, s.done, s.count, s.untracked, s.queued_ns, s.peak});
    }
    return rows;
}

std::vector<TraceEntry> trace(const RegionHandle& region) {
    const std::uint64_t end = region->trace_next;
    std::vector<TraceEntry> rows;
    for (std::uint64_t i = end > kTrace ? end - kTrace : 0; i < end; ++i) rows.push_back(region->trace[i % kTrace]);
    return rows;
}

RegionHandle checked(MappedRegion&& mapped, const char* error) {
    if (!mapped) throw std::runtime_error(error);
    return {std::make_shared<MappedRegion>(std::move(mapped))};
}

RegionHandle open(const std::string& path) {
    char error[512] = "";
    return checked(MappedRegion::open(path.c_str(), false, error, sizeof error), error);
}

RegionHandle create(const std::string& path, const Config& config) {
    char error[512] = "";
    return checked(MappedRegion::create(path.c_str(), config, error, sizeof error), error);
}

void bind_nouns(nb::module_& m) {
    nb::class_<Demand>(m, "Demand")
        .def("__init__",
             [](Demand* self, Ppm sm, Ppm bw, std::int32_t blocks, Nanoseconds duration) {
                 new (self) Demand{sm, bw, blocks, duration};
             },
             nb::kw_only(), nb::arg("sm_ppm") = 0, nb::arg("bw_ppm") = 0, nb::arg("sm_blocks") = 0,
             nb::arg("duration_ns") = 0)
        .def_ro("sm_ppm", &Demand::sm_ppm)
        .def_ro("bw_ppm", &Demand::bw_ppm)
        .def_ro("sm_blocks", &Demand::sm_blocks)
        .def_ro("duration_ns", &Demand::duration_ns);
    nb::class_<DeviceLimits>(m, "DeviceLimits")
        .def(nb::init<>())
        .def_rw("sms", &DeviceLimits::sms)
        .def_rw("flops_per_s", &DeviceLimits::flops_per_s)
        .def_rw("bytes_per_s", &DeviceLimits::bytes_per_s)
        .def_rw("memory_bytes", &DeviceLimits::memory_bytes);
    nb::class_<Config>(m, "Config")
        .def(nb::init<>())
        .def_prop_rw("policy", named(&Config::policy), named_setter(&Config::policy))
        .def_prop_rw("mode", named(&Config::mode), named_setter(&Config::mode))
        .def_rw("alpha_ppm", &Config::alpha_ppm)
        .def_rw("beta_ppm", &Config::beta_ppm)
        .def_rw("slowdown_limit", &Config::slowdown_limit)
        .def_rw("budget_ns", &Config::budget_ns)
        .def_rw("budget_share", &Config::budget_share)
        .def_rw("depth", &Config::depth)
        .def_rw("samples_needed", &Config::samples_needed)
        .def_rw("drain_after_ns", &Config::drain_after_ns)
        .def_rw("max_wait_ns", &Config::max_wait_ns)
        .def_rw("resolution_ns", &Config::resolution_ns)
        .def_rw("depth_ns", &Config::depth_ns)
        .def_rw("best_effort_lane_sms", &Config::best_effort_lane_sms)
        .def_rw("device", &Config::device);
}

void bind_rows(nb::module_& m) {
    using S = ClientStatistics;
    nb::class_<S>(m, "ClientStatistics")
        .def_ro("launches", &S::launches)
        .def_ro("at_once", &S::at_once)
        .def_ro("waited", &S::waited)
        .def_ro("forced", &S::forced)
        .def_ro("bypassed", &S::bypassed)
        .def_ro("overflowed", &S::overflowed)
        .def_ro("excess", &S::excess)
        .def_ro("denied_allocations", &S::denied_allocations)
        .def_ro("wait_ns", &S::wait_ns)
        .def_ro("longest_wait_ns", &S::longest_wait_ns)
        .def_ro("predicted_busy_ns", &S::predicted_busy_ns)
        .def_ro("observed_busy_ns", &S::observed_busy_ns)
        .def_ro("corun_ns", &S::corun_ns)
        .def_ro("lost_ns", &S::lost_ns)
        .def_ro("starved_ns", &S::starved_ns)
        .def_prop_ro("waits", [](const S& self) {
            return std::vector<std::uint64_t>(self.waits.count.begin(), self.waits.count.end());
        });
    nb::class_<ClientRow>(m, "Client")
        .def_ro("slot", &ClientRow::slot)
        .def_prop_ro("label", text<ClientRow>(&Client::label))
        .def_ro("state", &ClientRow::state)
        .def_ro("pid", &ClientRow::pid)
        .def_ro("pid_start", &ClientRow::pid_start)
        .def_prop_ro("priority", named<ClientRow>(&Client::priority))
        .def_ro("streams_active", &ClientRow::streams_active)
        .def_ro("waiting", &ClientRow::waiting)
        .def_ro("memory_cap_bytes", &ClientRow::memory_cap_bytes)
        .def_ro("memory_bytes", &ClientRow::memory_bytes)
        .def_ro("sm_ppm", &ClientRow::sm_ppm)
        .def_ro("bw_ppm", &ClientRow::bw_ppm)
        .def_ro("in_flight_ns", &ClientRow::in_flight_ns)
        .def_ro("iteration_ns", &ClientRow::iteration_ns)
        .def_ro("last_done_ns", &ClientRow::last_done_ns)
        .def_ro("statistics", &ClientRow::statistics);
    nb::class_<KernelRow>(m, "Kernel")
        .def_ro("row", &KernelRow::row)
        .def_ro("key", &KernelRow::key)
        .def_prop_ro("name", text<KernelRow>(&Kernel::name))
        .def_ro("grid", &KernelRow::grid)
        .def_ro("block", &KernelRow::block)
        .def_ro("registers", &KernelRow::registers)
        .def_ro("smem_static_bytes", &KernelRow::smem_static_bytes)
        .def_ro("smem_dynamic_bytes", &KernelRow::smem_dynamic_bytes)
        .def_ro("occupancy", &KernelRow::occupancy)
        .def_ro("flops", &KernelRow::flops)
        .def_ro("bytes", &KernelRow::bytes)
        .def_ro("demand", &KernelRow::demand)
        .def_prop_ro("source", named<KernelRow>(&Kernel::source))
        .def_prop_ro("bound", named<KernelRow>(&Kernel::bound))
        .def_ro("samples", &KernelRow::samples)
        .def_ro("correction_sm", &KernelRow::correction_sm)
        .def_ro("correction_bw", &KernelRow::correction_bw)
        .def_ro("launches", &KernelRow::launches)
        .def_ro("waited", &KernelRow::waited)
        .def_ro("wait_ns", &KernelRow::wait_ns)
        .def_ro("observed_ns", &KernelRow::observed_ns)
        .def_ro("observed", &KernelRow::observed)
        .def_ro("corun_observed", &KernelRow::corun_observed)
        .def_ro("corun_stretch", &KernelRow::corun_stretch)
        .def_ro("harm", &KernelRow::harm);
    nb::class_<Wait>(m, "Wait")
        .def_ro("client", &Wait::client)
        .def_ro("waited_for", &Wait::waited_for)
        .def_ro("wait_ns", &Wait::wait_ns);
    nb::class_<WaiterRow>(m, "Waiter")
        .def_ro("slot", &WaiterRow::slot)
        .def_ro("client", &WaiterRow::client)
        .def_ro("stream", &WaiterRow::stream)
        .def_ro("kernel", &WaiterRow::kernel)
        .def_ro("blamed", &WaiterRow::blamed)
        .def_prop_ro("reason", named(&WaiterRow::reason))
        .def_ro("key", &WaiterRow::key)
        .def_ro("demand", &WaiterRow::demand)
        .def_ro("since_ns", &WaiterRow::since_ns);
    nb::class_<StreamRow>(m, "Stream")
        .def_ro("slot", &StreamRow::slot)
        .def_ro("client", &StreamRow::client)
        .def_ro("id", &StreamRow::id)
        .def_ro("launched", &StreamRow::launched)
        .def_ro("done", &StreamRow::done)
        .def_ro("count", &StreamRow::count)
        .def_ro("untracked", &StreamRow::untracked)
        .def_ro("queued_ns", &StreamRow::queued_ns)
        .def_ro("peak", &StreamRow::peak);
    nb::class_<TraceEntry>(m, "TraceEntry")
        .def_ro("at_ns", &TraceEntry::at_ns)
        .def_ro("key", &TraceEntry::key)
        .def_ro("client", &TraceEntry::client)
        .def_ro("stream", &TraceEntry::stream)
        .def_ro("sm_ppm", &TraceEntry::sm_ppm)
        .def_ro("bw_ppm", &TraceEntry::bw_ppm)
        .def_prop_ro("kind",
                     [](const TraceEntry& self) {
                         return std::string(self.kind == 1 ? "waits" : self.kind == 2 ? "admitted" : "ended");
                     })
        .def_prop_ro("reason", named(&TraceEntry::reason));
}

template <auto Member>
auto field() {
    return [](const RegionHandle& self) { return (*self).*Member; };
}

}  // namespace

void bind_region(nb::module_& m) {
    bind_nouns(m);
    bind_rows(m);
    nb::class_<RegionHandle>(m, "Region")
        .def_static("open", &open, nb::arg("path"))
        .def_static("create", &create, nb::arg("path"), nb::arg("config"))
        .def("config", field<&Region::config>())
        .def("clients", &clients)
        .def("kernels", &kernels)
        .def("streams", &streams)
        .def("waits", &waits)
        .def("waiters", &waiters)
        .def("trace", &trace)
        .def_prop_ro("manager_pid", field<&Region::manager_pid>())
        .def_prop_ro("created_ns", field<&Region::created_ns>())
        .def_prop_ro("sm_ppm", field<&Region::sm_ppm>())
        .def_prop_ro("bw_ppm", field<&Region::bw_ppm>())
        .def_prop_ro("peak_sm_ppm", field<&Region::peak_sm_ppm>())
        .def_prop_ro("peak_bw_ppm", field<&Region::peak_bw_ppm>())
        .def_prop_ro("clients_joined", field<&Region::clients_joined>())
        .def_prop_ro("clients_active", field<&Region::clients_active>())
        .def_prop_ro("waiting", field<&Region::waiting>())
        .def_prop_ro("repairs", field<&Region::repairs>())
        .def_prop_ro("reaped", field<&Region::reaped>());
}

}  // namespace tierline::bindings
