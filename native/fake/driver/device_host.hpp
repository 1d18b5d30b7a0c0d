// Where the simulated device lives: in this process alone, or in a file that several processes share. Every change goes
// through here, so that a shared device can be made whole again after a member was killed in the middle of one.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "shared_file.hpp"
#include "tierline/fake/device.hpp"

namespace tierline::fakecuda {

using namespace tierline::fake;  // the engine

struct Config;

class DeviceHost {
public:
    using Interval = SharedFile::Interval;
    using HostCall = SharedFile::HostCall;

    // Returns a sentence that says what failed, or an empty string.
    std::string open(const Config& config);
    // Drops this process's contexts and gives up its place. The lock must be held.
    void close();

    bool shared() const { return shared_; }
    // Keeps other processes out; threads of this process are the caller's matter.
    void lock();
    void unlock();

    const Device& device() const { return *held_; }
    std::uint32_t client() const { return client_; }

    // The host's time: virtual time is the device's own, the wall clock runs on. Brings the device up to it.
    std::int64_t now();
    // Real nanoseconds from now until the device's next event; -1 when there is none. Wall clock only.
    std::int64_t real_until_next() const;
    // Virtual clock: moves time on. Wall clock: does nothing.
    void pass(std::int64_t ns);
    // Virtual clock: to the next event; false when there is none.
    bool step();

    Status create_context(ContextId& out);
    Status destroy_context(ContextId context);
    Status create_stream(ContextId context, StreamOptions options, StreamId& out);
    Status destroy_stream(StreamId stream);
    Status create_event(EventId& out);
    Status destroy_event(EventId event);
    Status register_kernel(const KernelSpec& spec, KernelId& out);
    Enqueued kernel(StreamId stream, KernelId kernel);
    Enqueued graph(StreamId stream, const KernelId* nodes, std::int32_t count);
    Enqueued copy(StreamId stream, std::int64_t bytes, Direction direction);
    Enqueued event(StreamId stream, EventId event);
    Enqueued wait(StreamId stream, EventId event);
    Enqueued host(StreamId stream, std::uint64_t cookie);
    Status host_done(StreamId stream);
    void post(std::uint32_t token);

    // The next host function of this process whose turn has come.
    bool take_host_call(HostCall& out);

    // Bytes in use on the device by all processes; this process's share is changed by `change_used`.
    std::uint64_t used_bytes() const;
    void change_used(std::int64_t bytes);

    // Streams of processes that died are dropped; looks at most every few milliseconds.
    void reap();

    // The truth so far as JSON.
    std::string truth_json() const;

private:
    struct Command;

    void apply(const Command& command, const void* payload, bool replaying);
    Enqueued run(Command& command, const void* payload, std::uint32_t payload_bytes);
    void drain(bool replaying);
    void repair();
    std::int64_t wall_ns() const;

    SharedFile file_;
    DeviceStatePtr own_;
    std::optional<Device> held_;
    bool shared_ = false;
    bool wall_ = false;
    bool keep_intervals_ = false;
    double scale_ = 1.0;
    std::int64_t base_real_ns_ = 0;
    std::int64_t last_reap_ns_ = 0;
    std::uint32_t client_ = 1;
    std::uint64_t used_bytes_ = 0;
    std::deque<HostCall> host_calls_;
    std::vector<Interval> intervals_;
    std::int64_t last_host_op_ = 0;
    std::string label_;
    // Results of the last command.
    Status status_ = Status::ok;
    std::int32_t made_ = -1;
    OpId op_ = 0;
};

}  // namespace tierline::fakecuda
