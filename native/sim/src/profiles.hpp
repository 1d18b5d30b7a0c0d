// What the admission is told of a program's kernels and graphs before they run.
#pragma once

#include "tierline/admission.hpp"
#include "tierline/sim/scenario.hpp"

namespace tierline::sim {

// Rows of the program's kernels and of its graphs in the admission's table, in the program's order.
struct ProfileRows {
    std::vector<int> kernels;
    std::vector<int> graphs;
};

// Adds them, with the profiles that the scenario grants. `registered` gives the device's number of each kernel.
ProfileRows add_profiles(Admission& admission, const fake::Device& device, const Scenario& scenario,
                         const fake::Program& program, const std::vector<fake::KernelId>& registered);

}  // namespace tierline::sim
