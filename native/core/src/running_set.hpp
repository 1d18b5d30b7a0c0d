// The running set: what is in flight per stream, client and device. Internal to the core.
#pragma once

#include "tierline/region.hpp"

#include <algorithm>

namespace tierline {

inline bool is_active(const Client& client) { return client.streams_active > 0; }

inline Queued& queued_at(Stream& stream, std::uint32_t index) { return stream.queue[(stream.first + index) % kQueue]; }
inline const Queued& queued_at(const Stream& stream, std::uint32_t index) {
    return stream.queue[(stream.first + index) % kQueue];
}

// Componentwise largest; durations are summed by the caller where that is meant.
inline Demand larger(const Demand& a, const Demand& b) {
    return {std::max(a.sm_ppm, b.sm_ppm), std::max(a.bw_ppm, b.bw_ppm), std::max(a.sm_blocks, b.sm_blocks),
            std::max(a.duration_ns, b.duration_ns)};
}

// Puts an admitted launch into its stream's queue and the sums.
void push(Region& region, int stream, const Queued& entry);

// What came out of a queue together: the launches up to one that was seen to end.
struct Ended {
    int count = 0;
    int kernel = -1;              // of the only one, -1 when there were several or it had been merged
    int company = 0;
    bool clear = true;            // false: one of unknown duration was among them
    Nanoseconds began_ns = 0;
    Nanoseconds predicted_ns = 0;
    Nanoseconds observed_ns = 0;  // less the time in which the stream had nothing to do
};
Ended pop(Region& region, int stream, std::uint64_t seq, Nanoseconds now_ns);

// Call after `waiting` or `streams_active` of a client changed: keeps the time it waited with nothing in flight.
void update_starvation(Client& client, Nanoseconds now_ns);

// Clients other than `client` with launches in flight; with waiting ones too when asked.
bool others_active(const Region& region, int client);
bool others_busy(const Region& region, int client);

// Sets `contended` from the counts; wakes nobody.
void update_contention(Region& region);

void write_trace(Region& region, std::uint8_t kind, int client, int stream, std::uint64_t key, Reason reason,
                 Nanoseconds now_ns);

template <typename Function>
void for_each_busy_stream(const Region& region, Function function) {
    const int words = (region.streams_used + 63) / 64;
    for (int word = 0; word < words; ++word) {
        for (std::uint64_t bits = region.busy_streams[word]; bits != 0; bits &= bits - 1) {
            function(word * 64 + __builtin_ctzll(bits));
        }
    }
}

}  // namespace tierline
