// Workloads as data: named programs (what a host thread does, step by step, in a loop) and the twelve pairs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tierline/fake/device.hpp"
#include "tierline/fake/specs.hpp"

namespace tierline::fake {

enum class StepKind : std::uint8_t {
    launch,          // kernel `index` of the program on `stream`
    graph,           // graph `index` of the program on `stream`: one call
    copy,            // `bytes` in `direction` on `stream`
    host,            // the host computes for host_ns, nothing else
    record,          // event `index` on `stream`
    wait_event,      // `stream` waits for event `index`
    synchronize,     // the host waits until `stream` is empty
    synchronize_all, // the host waits until all streams of the program are empty
    post,            // the host posts spin token `index`
    end_iteration,   // one unit of progress is done (training step, batch, request)
};

// Every step costs the host host_ns before its call returns (launch 3-6 us from a framework, about 2 us from C++).
struct Step {
    StepKind kind;
    std::uint16_t stream = 0;
    std::uint32_t index = 0;
    std::int64_t host_ns = 0;
    std::int64_t bytes = 0;
    Direction direction = Direction::host_to_device;
};

enum class ProgramKind : std::uint8_t {
    closed_loop,     // repeats the loop without pause: training, batch jobs; throughput = iterations per second
    server,          // runs the loop once per request; requests arrive Poisson at arrivals_per_s and queue; latency is
                     // from the arrival to end_iteration
};

struct Program {
    std::string name;
    std::string what;                       // one line for people
    ProgramKind kind = ProgramKind::closed_loop;
    double arrivals_per_s = 0;              // servers
    std::int32_t streams = 1;
    std::int32_t events = 0;
    std::int64_t memory_bytes = 0;          // device memory it holds
    std::vector<KernelSpec> kernels;        // distinct
    std::vector<std::vector<std::uint32_t>> graphs;   // each a list of indices into kernels
    std::vector<Step> loop;
};

struct Pair {
    std::string name;
    std::string high;                       // program of the high-priority client
    std::string best_effort;
    std::string what;                       // why it is in the set
};

// Single kernels by name, for tests and for programs of the driver (the names that launches carry).
const std::vector<KernelSpec>& named_kernels();
const KernelSpec* find_kernel(const std::string& name);   // null when there is none

const std::vector<Program>& programs();
const Program* find_program(const std::string& name);     // null when there is none
const std::vector<Pair>& pairs();                          // twelve

}  // namespace tierline::fake
