// What the device's calls need of the event loop.
#pragma once

#include "device_state.hpp"

namespace tierline::fake {

std::uint64_t mixed(std::uint64_t x);      // splitmix64
void set_now(DeviceState& s, std::int64_t to);           // moves the clock within a span without events
void settle(DeviceState& s);               // everything that happens at now_ns, then the speeds until the next event
bool room(const DeviceState& s, int count);              // for so many more operations
Op* append(DeviceState& s, StreamId stream, OpKind kind, std::int64_t submitted);
void fill_kernel(DeviceState& s, Op& op, KernelId kernel, std::uint64_t cookie);
void armed(DeviceState& s, StreamId stream, OpId first); // starts the stream when `first` is its head
void finish_head(DeviceState& s, int stream);            // pops the stream's head, which has ended
void free_op(DeviceState& s, int op);
void release_stream(DeviceState& s, int stream);
void start_engine(DeviceState& s, CopyEngine& engine);   // begins the copy at the head of its queue

}  // namespace tierline::fake
