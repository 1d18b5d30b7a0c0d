// Our own work around a call of the program must not throw into it.
#pragma once

#include "log.hpp"

#include <exception>

namespace tierline::interpose {

template <class Work>
bool guarded(Work&& work) noexcept {
    try {
        work();
        return true;
    } catch (const std::exception& error) {
        static Once once;
        log_once(once, "internal error (%s); the call passes", error.what());
        return false;
    }
}

}  // namespace tierline::interpose
