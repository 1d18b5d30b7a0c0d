// What the simulated device really did, as JSON.
#include <unistd.h>

#include <cstdio>

#include "calls.hpp"
#include "device_host.hpp"

namespace tierline::fakecuda {

std::string DeviceHost::truth_json() const {
    const Truth& truth = held_->truth();
    const auto real = [](double value) {
        char text[40];
        std::snprintf(text, sizeof text, "%.9g", value);
        return std::string(text);
    };
    JsonLine line;
    line.text("device", held_->spec().name)
        .raw("simulated_device", "true")
        .number("now_ns", held_->now_ns())
        .raw("sm_peak", real(truth.sm_peak))
        .raw("bw_peak", real(truth.bw_peak))
        .raw("shared_sm_peak", real(truth.shared_sm_peak))
        .raw("shared_bw_peak", real(truth.shared_bw_peak))
        .number("busy_ns", truth.busy_ns)
        .number("shared_ns", truth.shared_ns)
        .number("excess_ns", truth.excess_ns)
        .raw("sm_integral", real(truth.sm_integral))
        .raw("bw_integral", real(truth.bw_integral))
        .number("kernels_done", truth.kernels_done)
        .number("completions_lost", truth.completions_lost)
        .number("pid", ::getpid())
        .number("client", client_)
        .text("label", label_);
    const Interval* intervals = intervals_.data();
    std::uint64_t count = intervals_.size();
    if (shared_) {
        intervals = file_.intervals();
        count = const_cast<SharedFile&>(file_).header().intervals.load(std::memory_order_acquire);
    }
    std::string kernels = "[";
    for (std::uint64_t i = 0; i < count; ++i) {
        const KernelSpec* spec = held_->kernel(intervals[i].kernel);
        const AloneProfile* alone = held_->alone_profile(intervals[i].kernel);
        JsonLine one;
        one.text("name", spec != nullptr ? spec->name : "?")
            .number("client", intervals[i].client)
            .number("stream", intervals[i].stream)
            .number("submitted_ns", intervals[i].submitted_ns)
            .number("start_ns", intervals[i].start_ns)
            .number("end_ns", intervals[i].end_ns);
        if (alone != nullptr) {
            one.raw("sm_util", real(alone->sm_util))
                .raw("bw_util", real(alone->bw_util))
                .number("alone_ns", alone->duration_ns);
        }
        if (i > 0) kernels += ",\n";
        std::string text = one.take();
        text.pop_back();
        kernels += text;
    }
    line.raw("kernels", kernels + "]");
    return line.take();
}

}  // namespace tierline::fakecuda
