#include "config.hpp"

#include <cstdlib>
#include <sstream>

namespace tierline::fakecuda {
namespace {

const char* variable(const char* name) {
    const char* value = std::getenv(name);
    return value != nullptr && *value != '\0' ? value : nullptr;
}

std::string text(const char* name, const char* otherwise) {
    const char* value = variable(name);
    return value != nullptr ? value : otherwise;
}

void number(const char* name, std::int64_t lowest, std::int64_t& target, std::string& complaint) {
    const char* value = variable(name);
    if (value == nullptr) return;
    char* end = nullptr;
    const long long read = std::strtoll(value, &end, 10);
    if (*end != '\0' || read < lowest) {
        complaint =
            std::string(name) + "=" + value + ": a whole number of at least " + std::to_string(lowest) + " is allowed";
        return;
    }
    target = read;
}

void read_failures(const char* value, Config& out) {
    std::istringstream items(value);
    std::string item;
    while (std::getline(items, item, ',')) {
        const auto first = item.find(':');
        const auto second = item.find(':', first + 1);
        char* end = nullptr;
        Failure failure;
        bool good = first != std::string::npos && second != std::string::npos && first > 0;
        if (good) {
            failure.function = item.substr(0, first);
            const std::string call = item.substr(first + 1, second - first - 1);
            const std::string status = item.substr(second + 1);
            failure.call = call == "*" ? 0 : std::strtoull(call.c_str(), &end, 10);
            good = call == "*" || (end != nullptr && *end == '\0' && failure.call > 0);
            failure.status = static_cast<int>(std::strtol(status.c_str(), &end, 10));
            good = good && *end == '\0' && failure.status > 0;
        }
        if (!good) {
            out.complaint = "FAKECUDA_FAIL=" + item + ": function:call:status is allowed, call from 1 or *";
            return;
        }
        out.failures.push_back(failure);
    }
}

}  // namespace

Config read_config() {
    Config out;
    out.device = text("FAKECUDA_DEVICE", "h200");
    out.shared = text("FAKECUDA_SHARED", "");
    out.log = text("FAKECUDA_LOG", "");
    out.truth = text("FAKECUDA_TRUTH", "");
    out.label = text("FAKECUDA_CLIENT", text("TIERLINE_CLIENT", "").c_str());
    const std::string clock = text("FAKECUDA_CLOCK", "virtual");
    out.wall_clock = clock == "wall";
    if (clock != "wall" && clock != "virtual")
        out.complaint = "FAKECUDA_CLOCK=" + clock + ": virtual and wall are allowed";
    if (const char* value = variable("FAKECUDA_SCALE")) {
        char* end = nullptr;
        out.scale = std::strtod(value, &end);
        if (*end != '\0' || !(out.scale > 0.0) || out.scale > 1e6) {
            out.complaint = std::string("FAKECUDA_SCALE=") + value + ": a number above 0 and up to 1e6 is allowed";
            out.scale = 1.0;
        }
    }
    if (const char* value = variable("FAKECUDA_FAIL")) read_failures(value, out);
    out.mps = text("FAKECUDA_MPS", "1") != "0";
    out.strict = text("FAKECUDA_STRICT", "0") == "1";
    std::int64_t version = out.driver_version;
    std::int64_t memory = 0;
    number("FAKECUDA_VERSION", 11000, version, out.complaint);
    number("FAKECUDA_QUERY_NS", 0, out.query_ns, out.complaint);
    number("FAKECUDA_LAUNCH_NS", 0, out.launch_ns, out.complaint);
    number("FAKECUDA_MEMORY", 1, memory, out.complaint);
    out.driver_version = static_cast<int>(version);
    out.memory_bytes = static_cast<std::uint64_t>(memory);
    return out;
}

const Config& config() {
    // Never destroyed: calls may come from other libraries' exit handlers.
    static const Config* const once = new Config(read_config());
    return *once;
}

}  // namespace tierline::fakecuda
