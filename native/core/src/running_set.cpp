#include "running_set.hpp"

namespace tierline {

namespace {

void add_to_sums(Region& region, Client& client, Ppm sm_ppm, Ppm bw_ppm) {
    client.sm_ppm += sm_ppm;
    client.bw_ppm += bw_ppm;
    region.sm_ppm += sm_ppm;
    region.bw_ppm += bw_ppm;
}

void note_peaks(Region& region) {
    if (region.clients_active < 2) return;
    region.peak_sm_ppm = std::max(region.peak_sm_ppm, region.sm_ppm);
    region.peak_bw_ppm = std::max(region.peak_bw_ppm, region.bw_ppm);
}

}  // namespace

void push(Region& region, int slot, const Queued& entry) {
    Stream& stream = region.streams[slot];
    Client& client = region.clients[stream.client];
    if (stream.count == 0) {
        region.busy_streams[slot / 64] |= std::uint64_t{1} << (slot % 64);
        if (client.streams_active++ == 0) {
            ++region.clients_active;
            if (region.clients_active >= 2) {  // what ran by itself until now has company from here on
                for_each_busy_stream(region, [&](int other) {
                    Stream& running = region.streams[other];
                    if (running.client == stream.client || running.count == 0) return;
                    Queued& head = queued_at(running, 0);
                    if (head.company == 0) head.company = 2;
                });
            }
        }
    }
    if (stream.count == kQueue) {
        // No room to remember it by itself: it joins the newest entry, which then stands for both. Never too little.
        Queued& newest = queued_at(stream, kQueue - 1);
        const Nanoseconds duration_ns = newest.demand.duration_ns + entry.demand.duration_ns;
        newest.demand = larger(newest.demand, entry.demand);
        newest.demand.duration_ns = duration_ns;
        newest.seq = entry.seq;
        newest.kernel = -1;
    } else {
        queued_at(stream, stream.count) = entry;
        ++stream.count;
    }
    const Demand peak = larger(stream.peak, entry.demand);
    add_to_sums(region, client, peak.sm_ppm - stream.peak.sm_ppm, peak.bw_ppm - stream.peak.bw_ppm);
    stream.peak = peak;
    stream.queued_ns += entry.demand.duration_ns;
    client.in_flight_ns += entry.demand.duration_ns;
    note_peaks(region);
}

Ended pop(Region& region, int slot, std::uint64_t seq, Nanoseconds now_ns) {
    Stream& stream = region.streams[slot];
    Client& client = region.clients[stream.client];
    Ended ended;
    Nanoseconds clock_ns = stream.last_done_ns;  // where the stream would be if all took their predicted time
    Nanoseconds idle_ns = 0;
    bool merged = false;
    bool peak_left = false;  // what ended was among the largest: the others have to be looked at
    while (stream.count > 0 && queued_at(stream, 0).seq <= seq) {
        Queued& head = queued_at(stream, 0);
        if (ended.count == 0) {
            clock_ns = ended.began_ns = std::max(clock_ns, head.admitted_ns);
        } else if (head.admitted_ns > clock_ns) {
            idle_ns += head.admitted_ns - clock_ns;
            clock_ns = head.admitted_ns;
        }
        clock_ns += head.demand.duration_ns;
        ended.predicted_ns += head.demand.duration_ns;
        ended.kernel = head.kernel;
        ended.clear = ended.clear && head.demand.duration_ns > 0;
        ended.company = std::max(ended.company, head.company);
        merged = merged || head.kernel < 0;
        peak_left = peak_left || head.demand.sm_ppm == stream.peak.sm_ppm ||
                    head.demand.bw_ppm == stream.peak.bw_ppm || head.demand.sm_blocks == stream.peak.sm_blocks;
        ++ended.count;
        head.seq = 0;  // never to be taken for one in flight, should this process die before the next two lines
        stream.first = (stream.first + 1) % kQueue;
        --stream.count;
    }
    stream.done = std::max(stream.done, std::min(seq, stream.launched));
    if (ended.count == 0) return ended;
    if (ended.count > 1 || merged) ended.kernel = -1;
    ended.observed_ns = std::max<Nanoseconds>(0, now_ns - ended.began_ns - idle_ns);
    stream.last_done_ns = now_ns;
    client.last_done_ns = now_ns;
    stream.queued_ns -= ended.predicted_ns;
    client.in_flight_ns -= ended.predicted_ns;
    Demand peak = stream.peak;
    if (peak_left || stream.count == 0) {
        peak = {};
        for (std::uint32_t index = 0; index < stream.count; ++index) peak = larger(peak, queued_at(stream, index).demand);
    }
    add_to_sums(region, client, peak.sm_ppm - stream.peak.sm_ppm, peak.bw_ppm - stream.peak.bw_ppm);
    stream.peak = peak;
    if (stream.count == 0) {
        region.busy_streams[slot / 64] &= ~(std::uint64_t{1} << (slot % 64));
        stream.untracked = 0;
        if (--client.streams_active == 0) --region.clients_active;
    } else {
        Queued& head = queued_at(stream, 0);
        if (head.company == 0 && others_active(region, stream.client)) head.company = 2;
    }
    return ended;
}

void update_starvation(Client& client, Nanoseconds now_ns) {
    const bool starved = client.waiting > 0 && client.streams_active == 0;
    if (starved == (client.starved_since_ns != 0)) return;
    if (starved) {
        client.starved_since_ns = std::max<Nanoseconds>(1, now_ns);
    } else {
        client.statistics.starved_ns += std::max<Nanoseconds>(0, now_ns - client.starved_since_ns);
        client.starved_since_ns = 0;
    }
}

bool others_active(const Region& region, int client) {
    const int own = client >= 0 && is_active(region.clients[client]) ? 1 : 0;
    return region.clients_active > own;
}

bool others_busy(const Region& region, int client) {
    const int own = client >= 0 ? region.clients[client].waiting : 0;
    return others_active(region, client) || region.waiting > own;
}

void update_contention(Region& region) {
    const std::uint32_t contended = region.clients_active >= 2 || region.waiting > 0 ? 1 : 0;
    if (contended == region.contended.load(std::memory_order_relaxed)) return;
    region.contended.store(contended, std::memory_order_release);
    if (contended != 0) region.attention.fetch_add(1, std::memory_order_acq_rel);
}

void write_trace(Region& region, std::uint8_t kind, int client, int stream, std::uint64_t key, Reason reason,
                 Nanoseconds now_ns) {
    region.trace[region.trace_next % kTrace] = {now_ns,        key,           client, stream,
                                                region.sm_ppm, region.bw_ppm, kind,   reason};
    ++region.trace_next;
}

}  // namespace tierline
