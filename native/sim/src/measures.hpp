// What a run has shown: the device's truth while it goes on, the clients' figures at its end.
#pragma once

#include "host.hpp"

namespace tierline::sim {

// Follows both true sums from change to change.
class TruthMeter {
public:
    TruthMeter(const Scenario& scenario, Outcome& outcome);
    // Takes in the samples that the device has logged. `launches`: that reached the device so far.
    void read(fake::Device& device, std::int64_t launches);
    void finish(Nanoseconds end_ns, std::int64_t launches);

private:
    void hold_until(Nanoseconds at_ns, std::int64_t launches);

    const double alpha_, beta_;
    const bool keep_;
    Outcome& out_;
    fake::TruthSample last_{};
};

ClientOutcome outcome_of(const Host& host, Nanoseconds begin_ns, Nanoseconds end_ns);

}  // namespace tierline::sim
