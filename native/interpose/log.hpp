// Where the interposer says that it could not do its work: standard error, or the file TIERLINE_LOG. Each kind of
// message once a process; it never ends the program.
#pragma once

#include <atomic>

namespace tierline::interpose {

struct Once {
    std::atomic<bool> said{false};
};

__attribute__((format(printf, 2, 3))) void log_once(Once& once, const char* format, ...) noexcept;

}  // namespace tierline::interpose
