// An admission over a private region, driven in virtual time.
#pragma once

#include "check.hpp"
#include "tierline/admission.hpp"

#include <string>
#include <vector>

namespace tierline::test {

struct Bench {
    MappedRegion region;
    Admission admission;
    std::vector<int> admitted;

    explicit Bench(const Config& config) : region(MappedRegion::in_memory(config)), admission(*region) {}

    int kernel(const std::string& name, Ppm sm, Ppm bw, Nanoseconds duration_ns, std::int32_t sms = 132) {
        KernelFacts facts;
        facts.name = name;
        const int row = admission.add_kernel(kernel_key(name, {1, 1, 1}, {1, 1, 1}, 0), facts);
        admission.set_profile(row, {sm, bw, sms, duration_ns}, Source::counters);
        return row;
    }
    Ticket launch(int client, int stream, int row, Nanoseconds now_ns) {
        Ticket ticket = admission.request({client, stream, row, false}, now_ns);
        if (!ticket.admitted()) {
            int slots[kMaxWaiters];
            const int count = admission.decide(now_ns, slots, kMaxWaiters);
            for (int index = 0; index < count; ++index) {
                if (slots[index] == ticket.waiter) return admission.take(ticket.waiter, now_ns);
                admitted.push_back(slots[index]);
            }
        }
        return ticket;
    }
    void end(int stream, std::uint64_t seq, Nanoseconds now_ns) {
        if (admission.completed(stream, seq, now_ns)) look(now_ns);
    }
    void look(Nanoseconds now_ns) {
        int slots[kMaxWaiters];
        const int count = admission.decide(now_ns, slots, kMaxWaiters);
        for (int index = 0; index < count; ++index) admitted.push_back(slots[index]);
    }
};

inline Config strict() {
    Config config;
    config.mode = Mode::strict;
    config.alpha_ppm = config.beta_ppm = kWhole;
    return config;
}

}  // namespace tierline::test
