// What slowdowns seen say about profiles. Internal to the core.
#pragma once

#include "running_set.hpp"

namespace tierline {

// One launch ended that was watched by itself. When it ran before its company came and still took longer than predicted,
// more was asked of the device than the profiles say: the demands of all who ran are raised towards what was seen.
void correct(Region& region, const Ended& ended, const Demand& own, int own_stream);

}  // namespace tierline
