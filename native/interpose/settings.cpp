#include "settings.hpp"

#include "tierline/admission.hpp"

#include <cerrno>
#include <cstdio>
#include <cstdlib>

#include <unistd.h>

namespace tierline::interpose {

namespace {

std::string text_of(const char* name) {
    const char* value = std::getenv(name);
    return value != nullptr ? value : "";
}

void complain(Settings& settings, const char* name, const std::string& value, const char* allowed) {
    if (!settings.complaint.empty()) return;
    settings.complaint = std::string(name) + "='" + value + "' is not understood; allowed is " + allowed;
}

void read_integer(Settings& settings, const char* name, std::int64_t& target, std::int64_t unit, const char* allowed) {
    const std::string value = text_of(name);
    if (value.empty()) return;
    errno = 0;
    char* end = nullptr;
    const long long number = std::strtoll(value.c_str(), &end, 10);
    if (errno != 0 || *end != '\0' || number < 0) return complain(settings, name, value, allowed);
    target = number * unit;
}

}  // namespace

Settings read_settings() {
    Settings settings;
    settings.arbiter = text_of("TIERLINE_ARBITER");
    settings.profile = text_of("TIERLINE_PROFILE");
    settings.client = text_of("TIERLINE_CLIENT");
    if (settings.client.empty()) settings.client = "pid-" + std::to_string(getpid());
    const std::string priority = text_of("TIERLINE_PRIORITY");
    if (priority == "high") {
        settings.priority = Priority::high;
    } else if (!priority.empty() && priority != "best-effort") {
        complain(settings, "TIERLINE_PRIORITY", priority, "high or best-effort");
    }
    const std::string mode = text_of("TIERLINE_MODE");
    if (mode == "strict") {
        settings.mode = Mode::strict;
    } else if (!mode.empty() && mode != "latency") {
        complain(settings, "TIERLINE_MODE", mode, "strict or latency");
    }
    const std::string policy = text_of("TIERLINE_POLICY");
    if (!policy.empty()) {
        const int found = policy_from(policy);
        if (found >= 0) {
            settings.policy = static_cast<PolicyName>(found);
        } else {
            complain(settings, "TIERLINE_POLICY", policy, "a kernel policy (tierline kernels policies lists them)");
        }
    }
    read_integer(settings, "TIERLINE_MEMORY", settings.memory_cap_bytes, 1, "a number of bytes");
    read_integer(settings, "TIERLINE_POLL_US", settings.poll_ns, kMicrosecond, "a number of microseconds");
    const std::string spec = text_of("TIERLINE_DEVICE_SPEC");
    if (!spec.empty()) {
        DeviceLimits& device = settings.device;
        if (std::sscanf(spec.c_str(), "%d:%lf:%lf", &device.sms, &device.flops_per_s, &device.bytes_per_s) == 3 &&
            device.sms > 0) {
            settings.has_device_spec = true;
        } else {
            device = {};
            complain(settings, "TIERLINE_DEVICE_SPEC", spec, "sms:flops_per_s:bytes_per_s");
        }
    }
    settings.raise_streams = text_of("TIERLINE_STREAM_PRIORITY") != "keep";
    return settings;
}

}  // namespace tierline::interpose
