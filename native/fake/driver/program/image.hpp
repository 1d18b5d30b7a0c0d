// An engine's kernel as the text that the fake driver loads.
#pragma once

#include <string>

#include "tierline/fake/specs.hpp"

namespace tierline::fake {

// A module with this one kernel; `parameters` are the sizes of its arguments ("8,8,4") or empty.
std::string module_text(const KernelSpec& kernel, const char* parameters);

}  // namespace tierline::fake
