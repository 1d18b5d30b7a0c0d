#include "tierline/admission.hpp"

#include <array>

namespace tierline {

namespace {

constexpr std::array<const char*, kPolicies> kPolicyNames = {"interference", "sequential", "free", "orion", "reef",
                                                             "tgs",          "lanes",      "pair", "gate"};
constexpr std::array<const char*, kReasons> kReasonNames = {"none",
                                                            "alone",
                                                            "fits",
                                                            "never-waits",
                                                            "ungated",
                                                            "spared",
                                                            "forced",
                                                            "bypassed",
                                                            "overflowed",
                                                            "sm-limit",
                                                            "bw-limit",
                                                            "slowdown-limit",
                                                            "depth",
                                                            "budget",
                                                            "unknown-runs-alone",
                                                            "draining",
                                                            "turn",
                                                            "high-priority-first",
                                                            "rate",
                                                            "lane",
                                                            "bound-class"};
constexpr std::array<const char*, 6> kSourceNames = {"none", "learning", "assumed", "roofline", "event", "counters"};

}  // namespace

const char* name_of(PolicyName policy) { return kPolicyNames[static_cast<std::size_t>(policy)]; }
const char* name_of(Reason reason) { return kReasonNames[static_cast<std::size_t>(reason)]; }
const char* name_of(Source source) { return kSourceNames[static_cast<std::size_t>(source)]; }

int policy_from(std::string_view name) {
    for (int index = 0; index < kPolicies; ++index) {
        if (name == kPolicyNames[index]) return index;
    }
    return -1;
}

}  // namespace tierline
