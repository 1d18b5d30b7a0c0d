// From what a kernel looks like to what it uses. Internal to the core.
#pragma once

#include "tierline/admission.hpp"

namespace tierline {

// SMs that the grid occupies at once: min(SMs, ceil(blocks / occupancy)).
std::int32_t occupied_sms(const Kernel& kernel, std::int32_t sms);

// What a kernel of this duration uses, by the roofline of its operations and bytes where both it and the device are
// known (sm = F / (t · Fpeak), bw = B / (t · BWpeak)); otherwise by the SMs that it occupies, on the safe side.
// Sets `demand`, `source` and `bound`.
void estimate(Kernel& kernel, const DeviceLimits& device);

BoundClass bound_of(const Demand& demand);

}  // namespace tierline
