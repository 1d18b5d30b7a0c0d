// What the environment says to the interposer, read once a process (again in a forked child).
#pragma once

#include "tierline/region.hpp"

#include <cstdint>
#include <string>

namespace tierline::interpose {

struct Settings {
    std::string arbiter;    // TIERLINE_ARBITER: file of the shared region; empty = a private region
    std::string client;     // TIERLINE_CLIENT
    std::string profile;    // TIERLINE_PROFILE: CSV of what kernels use
    Priority priority = Priority::best_effort;  // TIERLINE_PRIORITY
    PolicyName policy = PolicyName::interference;
    Mode mode = Mode::latency;
    std::int64_t memory_cap_bytes = 0;          // TIERLINE_MEMORY; 0 = no cap
    bool has_device_spec = false;               // TIERLINE_DEVICE_SPEC
    DeviceLimits device;
    bool raise_streams = true;                  // TIERLINE_STREAM_PRIORITY=keep leaves stream priorities as asked
    Nanoseconds poll_ns = 20 * kMicrosecond;    // TIERLINE_POLL_US
    std::string complaint;                      // a variable that was not understood, in words
};

Settings read_settings();

}  // namespace tierline::interpose
