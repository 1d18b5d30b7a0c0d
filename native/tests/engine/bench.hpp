// A device in private memory with one context, and short ways to use it.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "tierline/fake/device.hpp"
#include "tierline/fake/programs.hpp"

using namespace tierline::fake;

inline DeviceSpec steady(Gpu gpu = Gpu::h200) {
    DeviceSpec d = device_spec(gpu);
    d.launch_jitter_ns = 0;
    d.work_jitter = 0;
    return d;
}

inline void require(Status status) {
    if (status == Status::ok) return;
    std::fprintf(stderr, "a call of the test's set-up failed: %s\n", status_text(status));
    std::exit(1);
}

inline const KernelSpec& named(const char* name) {
    const KernelSpec* k = find_kernel(name);
    if (k == nullptr) {
        std::fprintf(stderr, "no kernel is named %s\n", name);
        std::exit(1);
    }
    return *k;
}

struct Bench {
    DeviceStatePtr memory = new_device_state();
    Device device{*memory};
    ContextId context = -1;
    std::vector<Completion> done;

    explicit Bench(const DeviceSpec& spec = steady(), std::uint64_t seed = 1, bool mps = true) {
        device.reset(spec, seed, mps);
        require(device.create_context(context));
    }
    StreamId stream(const StreamOptions& options = {}) { return stream_of(context, options); }
    StreamId stream_of(ContextId c, const StreamOptions& options = {}) {
        StreamId s = -1;
        require(device.create_stream(c, options, s));
        return s;
    }
    KernelId kernel(const KernelSpec& spec) {
        KernelId k = -1;
        require(device.register_kernel(fitted(device.spec(), spec), k));
        return k;
    }
    KernelId kernel(const char* name) { return kernel(named(name)); }
    OpId launch(StreamId s, KernelId k, std::int64_t now = 0) {
        const Enqueued e = device.enqueue_kernel(s, k, now);
        require(e.status);
        return e.op;
    }
    void drain() {
        for (Completion c; device.poll(c);) done.push_back(c);
    }
    // Until nothing more happens by itself, or `until`.
    void run(std::int64_t until = never) {
        while (device.next_time() <= until && device.next_time() != never) {
            device.advance(device.next_time());
            drain();
        }
        drain();
    }
    const Completion* of(OpId op) const {
        for (const Completion& c : done)
            if (c.op == op) return &c;
        return nullptr;
    }
    std::int64_t duration(OpId op) const {
        const Completion* c = of(op);
        return c == nullptr ? -1 : c->end_ns - c->start_ns;
    }
};
