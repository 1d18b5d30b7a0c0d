// Captures in progress, graphs, and events of the program: what a graph launch is made of, and what an event covers.
#pragma once

#include "kernels.hpp"
#include "spin_lock.hpp"
#include "streams.hpp"

#include <atomic>
#include <mutex>
#include <unordered_map>

namespace tierline::interpose {

// One unit: all kernels of an executable graph.
struct GraphUnit {
    int row = -1;
    bool exempt = false;  // it holds a collective
    bool empty = true;    // no kernel in it
};

class Captures {
public:
    explicit Captures(Session& session) : session_(session) {}

    bool any() const { return open_.load(std::memory_order_seq_cst) > 0; }
    // Is the stream being captured? Asks the driver, and only while some capture is open in this process.
    bool is_capturing(StreamEntry& entry, CUstream stream, bool per_thread);
    // Before the driver begins; afterwards the poller records nothing into the stream.
    void beginning(StreamEntry& entry);
    // It did not begin, or it ended.
    void over(StreamEntry& entry);

    void instantiated(CUgraphExec exec, CUgraph graph);
    void destroyed(CUgraphExec exec);
    GraphUnit unit_of(CUgraphExec exec);

    // What an event of the program covers. Other threads may launch or record meanwhile: read before the driver is called.
    struct Mark {
        Lane* lane = nullptr;  // null: nothing of ours
        std::uint64_t covered = 0;
    };
    // The program recorded an event of its own.
    void recorded(CUevent event, const Mark& mark);
    Mark mark_of(CUevent event);
    // The event has come: all that it covered has ended.
    void came(const Mark& mark, bool synchronized);
    void forget(CUevent event);

private:
    struct Sum;
    void add_nodes(CUgraph graph, Sum& sum, int depth);

    Session& session_;
    std::atomic<int> open_{0};
    std::mutex mutex_;
    std::unordered_map<CUgraphExec, GraphUnit> units_;
    SpinLock marks_lock_;
    std::unordered_map<CUevent, Mark> marks_;
};

}  // namespace tierline::interpose
