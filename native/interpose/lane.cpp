#include "streams.hpp"

#include <algorithm>
#include <mutex>

namespace tierline::interpose {

void Lane::owe(std::uint64_t seq) {
    std::uint64_t before = owed.load(std::memory_order_relaxed);
    while (before < seq && !owed.compare_exchange_weak(before, seq)) {
    }
}

std::uint64_t Lane::returned(std::uint64_t seq) {
    const std::lock_guard<SpinLock> guard(lock_);
    const bool last = in_call.fetch_sub(1, std::memory_order_acq_rel) == 1;
    if (seq != 0) {
        ++count_;
        highest_ = std::max(highest_, seq);
    }
    // Numbers are distinct and begin at 1: when there are as many as the highest says, none below it is missing. When
    // no thread is between asking and having launched, none can be missing either.
    if (count_ == highest_ || last) {
        count_ = highest_;
        if (highest_ > covered.load(std::memory_order_relaxed)) covered.store(highest_, std::memory_order_release);
    }
    return covered.load(std::memory_order_relaxed);
}

}  // namespace tierline::interpose
