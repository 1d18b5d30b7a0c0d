// A region as Python holds it: shared, because an admission over it may outlive the handle.
#pragma once

#include "names.hpp"

#include <memory>

namespace tierline::bindings {

struct RegionHandle {
    std::shared_ptr<MappedRegion> mapped;
    Region& operator*() const { return **mapped; }
    Region* operator->() const { return &**mapped; }
};

void bind_region(nb::module_& module);
void bind_admission(nb::module_& module);
void bind_simulation(nb::module_& module);

}  // namespace tierline::bindings
