// `tierline._native`: the core, the simulated device and the simulation of both, for Python. Typed in _native.pyi.
#include "region.hpp"

#include <nanobind/stl/vector.h>

#include <vector>

NB_MODULE(_native, m) {
    using namespace tierline;
    using namespace tierline::bindings;
    m.attr("REGION_VERSION") = kVersion;
    m.attr("TRUTH") = TIERLINE_TRUTH;
    std::vector<std::string> policies;
    for (int i = 0; i < kPolicies; ++i) policies.push_back(name(static_cast<PolicyName>(i)));
    m.attr("POLICIES") = nb::tuple(nb::cast(policies));
    bind_region(m);
    bind_admission(m);
    bind_simulation(m);
}
