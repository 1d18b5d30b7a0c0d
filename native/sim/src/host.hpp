// One client of the co-simulation: the host thread that walks through its program, and its streams.
#pragma once

#include "profiles.hpp"
#include "rng.hpp"

#include <deque>

namespace tierline::sim {

constexpr Nanoseconds kNever = INT64_MAX;

// A launch on the device that has not ended.
struct Pending {
    fake::OpId op;
    std::uint64_t seq;      // 0: the admission does not know it (bypassed)
    int row;                // of the kernel, to be timed; -1: not
    bool watched;           // an event stands behind it
    Nanoseconds began_ns;   // of its first kernel; -1 until that has ended
};

struct Lane {
    fake::StreamId device;
    int slot;                        // the stream in the admission; -1 when there is none
    std::deque<Pending> in_flight;
    std::uint64_t submitted = 0;     // newest launch that the driver has
    std::uint64_t seen = 0;          // newest launch whose watched end the poller has not told yet; 0 = none
};

enum class HostState : std::uint8_t {
    absent,         // has not joined yet
    next_request,   // a server looks for its next request
    begin,          // of the step `step`
    call,           // its host time is over
    gated,          // waits in the admission
    submit,         // admitted; the launch goes to the driver
    synchronising,
    draining,       // all its iterations are launched
    gone,
};

struct Host {
    const ClientSpec* spec = nullptr;
    int index = 0;
    int client = -1;
    std::vector<Lane> lanes;
    std::vector<fake::EventId> events;
    std::vector<fake::KernelId> kernels;
    std::vector<std::vector<fake::KernelId>> graphs;
    ProfileRows rows;
    std::vector<bool> exempt;        // of kernels
    std::vector<double> progress;    // share of the loop done before each step
    std::int64_t ends_per_loop = 0;  // iterations that end in one loop

    HostState state = HostState::absent;
    Nanoseconds ready_ns = 0;
    std::size_t step = 0;
    int waiter = -1;
    Ticket ticket;
    Rng arrivals{0};
    Nanoseconds next_arrival_ns = 0;
    Nanoseconds began_ns = 0;        // arrival of the request, or begin of the iteration
    std::int64_t iterations = 0;
    std::int64_t loops = 0;
    double done_at_warmup = 0;
    std::vector<Nanoseconds> latencies_ns;

    const fake::Program& program() const { return spec->program; }
    const fake::Step& now() const { return program().loop[step]; }
    bool is_server() const { return program().kind == fake::ProgramKind::server; }
    // Between two requests: Poisson.
    Nanoseconds gap_ns(Rng& rng) const {
        return static_cast<Nanoseconds>(rng.exponential(double(kSecond) / program().arrivals_per_s));
    }
    double done() const { return (double(loops) + progress[step]) * double(ends_per_loop); }
};

// Makes the client's streams, events and kernels on the device. Throws std::invalid_argument when they do not fit.
Host make_host(fake::Device& device, const Scenario& scenario, int index);

}  // namespace tierline::sim
