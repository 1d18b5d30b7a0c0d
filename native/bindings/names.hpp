// Enumerations cross into Python as their names, so that no list of values stands twice.
#pragma once

#include "tierline/admission.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <string>
#include <type_traits>

namespace tierline::bindings {

namespace nb = nanobind;

inline std::string name(PolicyName value) { return name_of(value); }
inline std::string name(Reason value) { return name_of(value); }
inline std::string name(Source value) { return name_of(value); }
inline std::string name(Mode value) { return value == Mode::strict ? "strict" : "latency"; }
inline std::string name(Priority value) { return value == Priority::high ? "high" : "best-effort"; }
inline std::string name(BoundClass value) {
    return value == BoundClass::compute ? "compute" : value == BoundClass::memory ? "memory" : "unknown";
}

// The value among the first `count` whose name is `given`.
template <class Enum>
Enum value_named(const char* what, const std::string& given, int count) {
    std::string known;
    for (int i = 0; i < count; ++i) {
        const std::string candidate = name(static_cast<Enum>(i));
        if (candidate == given) return static_cast<Enum>(i);
        known += (i ? ", " : "") + candidate;
    }
    throw nb::value_error(("unknown " + std::string(what) + " '" + given + "'. Known: " + known + ".").c_str());
}

inline void parse(const std::string& given, PolicyName& out) { out = value_named<PolicyName>("policy", given, kPolicies); }
inline void parse(const std::string& given, Mode& out) { out = value_named<Mode>("mode", given, 2); }
inline void parse(const std::string& given, Priority& out) { out = value_named<Priority>("priority", given, 2); }
inline void parse(const std::string& given, Source& out) { out = value_named<Source>("source", given, 6); }

// An attribute that is an enumeration in C++ and a string in Python.
// `Row`: the bound class where it is one derived from the member's (what is not bound itself cannot be converted to).
template <class Row = void, class Class, class Member>
auto named(Member Class::*member) {
    using Self = std::conditional_t<std::is_void_v<Row>, Class, Row>;
    return [member](const Self& self) { return name(self.*member); };
}
template <class Class, class Member>
auto named_setter(Member Class::*member) {
    return [member](Class& self, const std::string& given) { parse(given, self.*member); };
}

// A fixed array of characters, zero-padded.
template <class Row = void, class Class, std::size_t N>
auto text(std::array<char, N> Class::*member) {
    using Self = std::conditional_t<std::is_void_v<Row>, Class, Row>;
    return [member](const Self& self) {
        const auto& chars = self.*member;
        std::size_t length = 0;
        while (length < N && chars[length]) ++length;
        return std::string(chars.data(), length);
    };
}

}  // namespace tierline::bindings
