#include "correction.hpp"

#include "demand.hpp"

#include <algorithm>

namespace tierline {

namespace {

constexpr double kTolerance = 1.05;     // slower than this is a slowdown
constexpr double kGain = 0.5;           // share of the gap that one launch closes
constexpr double kLargestStep = 1.25;
constexpr double kLargestCorrection = 2.0;

void raise(Ppm& demand, double& correction, double factor) {
    const double allowed = std::min(factor, kLargestCorrection / correction);
    if (allowed <= 1.0) return;
    correction *= allowed;
    demand = static_cast<Ppm>(std::min<double>(kWhole, demand * allowed));
}

void raise(Kernel& kernel, bool bandwidth, double factor) {
    if (bandwidth) {
        raise(kernel.demand.bw_ppm, kernel.correction_bw, factor);
    } else {
        raise(kernel.demand.sm_ppm, kernel.correction_sm, factor);
    }
    kernel.bound = bound_of(kernel.demand);
}

}  // namespace

void correct(Region& region, const Ended& ended, const Demand& own, int own_stream) {
    if (ended.kernel < 0 || !ended.clear || ended.predicted_ns <= 0) return;
    Kernel& kernel = region.kernels[ended.kernel];
    const double stretch = static_cast<double>(ended.observed_ns) / static_cast<double>(ended.predicted_ns);
    kernel.observed_ns += ended.observed_ns;
    ++kernel.observed;
    if (ended.company == 0) return;
    ++kernel.corun_observed;
    kernel.corun_stretch += stretch;
    // A newcomer may merely have waited for free SMs; only one that was there before its company tells of overload.
    if (ended.company != 2 || stretch <= kTolerance) return;
    if (ended.observed_ns - ended.predicted_ns <= region.config.resolution_ns) return;
    const int own_client = region.streams[own_stream].client;
    const Client& client = region.clients[own_client];
    const Ppm sm_ppm = region.sm_ppm - client.sm_ppm + own.sm_ppm;
    const Ppm bw_ppm = region.bw_ppm - client.bw_ppm + own.bw_ppm;
    const bool bandwidth = bw_ppm >= sm_ppm;
    const double missing = stretch * kWhole / std::max<Ppm>(1, std::max(sm_ppm, bw_ppm));
    if (missing <= 1.0) return;
    const double factor = std::min(kLargestStep, 1.0 + kGain * (missing - 1.0));
    raise(kernel, bandwidth, factor);
    for_each_busy_stream(region, [&](int slot) {
        const Stream& other = region.streams[slot];
        if (other.client == own_client || other.count == 0) return;
        const int row = queued_at(other, 0).kernel;
        if (row >= 0 && region.kernels[row].source > Source::learning) raise(region.kernels[row], bandwidth, factor);
    });
}

}  // namespace tierline
