// Contexts, shared by the files that make them.
#pragma once

#include "driver.hpp"

namespace tierline::fakecuda {

inline bool good_device(CUdevice device) { return device == 0; }

// A context of its own on the device, or (`green`) one that lends a green context a face.
CUresult make_context(unsigned flags, Context*& out, GreenContext* green);
CUresult retain_primary();
CUresult release_primary();
void destroy_context(Context* context);

}  // namespace tierline::fakecuda
