// For a few instructions at a time; never held across a call of the driver or of the arbiter.
#pragma once

#include <sched.h>

#include <atomic>

namespace tierline::interpose {

class SpinLock {
public:
    void lock() {
        for (int tries = 0; word_.exchange(true, std::memory_order_acquire); ++tries) {
            if (tries > 64) sched_yield();
        }
    }
    void unlock() { word_.store(false, std::memory_order_release); }

private:
    std::atomic<bool> word_{false};
};

}  // namespace tierline::interpose
