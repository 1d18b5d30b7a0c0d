// A check that stays on in every build type: says what failed where, and makes the program end with 1.
#pragma once

#include <cstdio>

inline int& check_failures() {
    static int failures = 0;
    return failures;
}

#define CHECK(condition)                                                                         \
    do {                                                                                         \
        if (!(condition)) {                                                                      \
            ++check_failures();                                                                  \
            std::fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);         \
        }                                                                                        \
    } while (false)

inline int check_result() {
    if (check_failures() == 0) std::puts("all checks hold");
    return check_failures() == 0 ? 0 : 1;
}
