// What the environment says to the fake driver; read once, when the library is loaded.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tierline::fakecuda {

// FAKECUDA_FAIL: the `call`-th call (from 1; 0 = every call) of `function` fails with `status`.
struct Failure {
    std::string function;
    std::uint64_t call = 0;
    int status = 0;
};

struct Config {
    std::string device = "h200";     // FAKECUDA_DEVICE: h200, a100 or v100
    std::string shared;              // FAKECUDA_SHARED: path of the device's state when several processes share it
    bool wall_clock = false;         // FAKECUDA_CLOCK: virtual (default) or wall
    double scale = 1.0;              // FAKECUDA_SCALE: virtual nanoseconds per real nanosecond, wall clock only
    std::string log;                 // FAKECUDA_LOG: JSON lines, one a call
    std::string truth;               // FAKECUDA_TRUTH: true peaks and kernel intervals, written at exit
    std::vector<Failure> failures;   // FAKECUDA_FAIL: function:call:status, comma-separated
    bool mps = true;                 // FAKECUDA_MPS=0: contexts take turns on the device instead of running together
    bool strict = false;             // FAKECUDA_STRICT=1: a launch without a gate ticket fails
    int driver_version = 13000;      // FAKECUDA_VERSION
    std::int64_t query_ns = 1000;    // FAKECUDA_QUERY_NS: virtual time that a query costs
    std::int64_t launch_ns = 0;      // FAKECUDA_LAUNCH_NS: virtual time that a launch costs its host
    std::uint64_t memory_bytes = 0;  // FAKECUDA_MEMORY: device memory; 0 = what the device has
    std::string label;               // FAKECUDA_CLIENT, else TIERLINE_CLIENT: this process's name in the truth
    std::string complaint;           // what was wrong with a variable; told by cuInit, which then fails
};

Config read_config();
const Config& config();

}  // namespace tierline::fakecuda
