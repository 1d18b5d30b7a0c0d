// What a test needs: CHECK and its kin say what was expected and what was found and go on; `check_result()` at the end of main
// gives the exit code. Usable from several threads.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>
#include <thread>
#include <type_traits>

namespace tierline::test {

inline std::atomic<int> failures{0};
inline std::atomic<int> checks{0};

template <class T>
std::string shown(const T& value) {
    std::ostringstream text;
    if constexpr (std::is_enum_v<T>) {
        text << static_cast<long long>(value);
    } else if constexpr (std::is_same_v<T, bool>) {
        text << (value ? "true" : "false");
    } else {
        text << value;
    }
    return text.str();
}

inline void fail(const char* file, int line, const std::string& what) {
    failures.fetch_add(1);
    std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
}

inline void check(bool fine, const char* file, int line, const char* text) {
    checks.fetch_add(1);
    if (!fine) fail(file, line, std::string("expected ") + text);
}

template <class Left, class Right, class Compare>
void check_relation(const Left& left, const Right& right, Compare holds, const char* file, int line, const char* text) {
    checks.fetch_add(1);
    if (!holds(left, right)) fail(file, line, std::string("expected ") + text + "; found " + shown(left) + " and " + shown(right));
}

// Waits until `condition()` holds, looking often; false when `limit` has passed first. Never a test of speed: the limit is
// far above what is needed, so that a hang ends as a failure.
template <class Condition>
bool eventually(Condition condition, std::chrono::milliseconds limit = std::chrono::seconds(30)) {
    const auto until = std::chrono::steady_clock::now() + limit;
    while (!condition()) {
        if (std::chrono::steady_clock::now() > until) return false;
        std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
    return true;
}

}  // namespace tierline::test

// The exit code of a test: 1 when a check failed, or when none was made.
inline int check_result() {
    const int failed = tierline::test::failures.load();
    const int made = tierline::test::checks.load();
    std::fprintf(stderr, "%d checks, %d failed\n", made, failed);
    return failed != 0 || made == 0 ? 1 : 0;
}

#define CHECK(condition) ::tierline::test::check(static_cast<bool>(condition), __FILE__, __LINE__, #condition)
#define CHECK_RELATION(a, op, b)                                                                              \
    ::tierline::test::check_relation((a), (b), [](const auto& l, const auto& r) { return l op r; }, __FILE__, \
                                     __LINE__, #a " " #op " " #b)
#define CHECK_EQ(a, b) CHECK_RELATION(a, ==, b)
#define CHECK_NE(a, b) CHECK_RELATION(a, !=, b)
#define CHECK_LT(a, b) CHECK_RELATION(a, <, b)
#define CHECK_LE(a, b) CHECK_RELATION(a, <=, b)
#define CHECK_GT(a, b) CHECK_RELATION(a, >, b)
#define CHECK_GE(a, b) CHECK_RELATION(a, >=, b)
// For what the rest of a test cannot do without: ends the test's program at once.
#define REQUIRE(condition)                                                                    \
    do {                                                                                      \
        if (!(condition)) {                                                                   \
            ::tierline::test::fail(__FILE__, __LINE__, "needed to go on: " #condition);       \
            std::exit(::check_result());                                            \
        }                                                                                     \
    } while (false)
