// Streams, events and synchronisation. Nothing here waits for the gate; what a program learns by synchronising is told
// to the region, which then needs no event for it.
#include "guarded.hpp"
#include "hooks.hpp"
#include "session.hpp"
#include "thread.hpp"

#include <vector>

namespace tierline::interpose {

namespace {

// Streams of a high-priority client get the device's greatest priority, by the same call that creates them.
bool raises(Session* session, int& priority) {
    if (session == nullptr || !session->settings.raise_streams) return false;
    bool raised = false;
    guarded([&] {
        if (session->client_of_thread()->priority != Priority::high) return;
        int least = 0;
        int greatest = 0;
        if (driver()->cuCtxGetStreamPriorityRange == nullptr ||
            driver()->cuCtxGetStreamPriorityRange(&least, &greatest) != CUDA_SUCCESS || greatest == least) {
            return;
        }
        priority = greatest;
        raised = true;
    });
    return raised;
}

CUresult after_creation(Session* session, CUresult result, CUstream* stream) {
    if (result == CUDA_SUCCESS && session != nullptr && stream != nullptr) {
        guarded([&] { session->streams.created(*stream); });
    }
    return result;
}

// What the lane had in its stream before a call that waits for all of it.
struct Before {
    Session* session = nullptr;
    Lane* lane = nullptr;
    std::uint64_t covered = 0;

    Before(CUstream stream, bool per_thread) {
        session = session_if_any();
        if (session == nullptr) return;
        guarded([&] { lane = session->streams.existing_lane(stream, per_thread); });
        if (lane != nullptr) covered = lane->covered.load(std::memory_order_acquire);
    }
    void has_ended(bool iteration) const {
        if (lane == nullptr) return;
        guarded([&] {
            session->completion.ended(*lane, covered);
            if (iteration) session->iteration_ended(*lane->client);
        });
    }
};

// All lanes of the current context.
template <class Real>
CUresult synchronize_all(CUcontext context, Real&& real) {
    Session* session = session_if_any();
    std::vector<std::pair<Lane*, std::uint64_t>> before;
    if (session != nullptr) {
        guarded([&] {
            const CUcontext waited = context != nullptr ? context : current_context();
            for (Lane* lane : session->streams.lanes()) {
                if (lane->stream->context->handle == waited) before.emplace_back(lane, lane->covered.load());
            }
        });
    }
    const CUresult result = real();
    if (result == CUDA_SUCCESS && session != nullptr) {
        guarded([&] {
            for (const auto& [lane, covered] : before) session->completion.ended(*lane, covered);
            session->iteration_ended(*session->client_of_thread());
        });
    }
    return result;
}

// Has the driver record the event, and keeps what it covers.
template <class Real>
CUresult record(CUevent event, CUstream stream, bool per_thread, Real&& real) {
    const Before before(stream, per_thread);
    const CUresult result = real();
    if (result == CUDA_SUCCESS && before.session != nullptr) {
        guarded([&] { before.session->captures.recorded(event, {before.lane, before.covered}); });
    }
    return result;
}

template <class Real>
CUresult await(CUevent event, bool synchronized, Real&& real) {
    Session* session = session_if_any();
    Captures::Mark mark;
    if (session != nullptr) guarded([&] { mark = session->captures.mark_of(event); });
    const CUresult result = real();
    if (result == CUDA_SUCCESS && session != nullptr) guarded([&] { session->captures.came(mark, synchronized); });
    return result;
}

}  // namespace

CUresult stream_create(Site<Fn_cuStreamCreate> site, CUstream* stream, unsigned flags) {
    Session* owner = session();
    int priority = 0;
    if (raises(owner, priority) && driver()->cuStreamCreateWithPriority != nullptr) {
        return after_creation(owner, driver()->cuStreamCreateWithPriority(stream, flags, priority), stream);
    }
    return after_creation(owner, site.real(stream, flags), stream);
}

CUresult stream_create_with_priority(Site<Fn_cuStreamCreateWithPriority> site, CUstream* stream, unsigned flags,
                                     int priority) {
    Session* owner = session();
    raises(owner, priority);
    return after_creation(owner, site.real(stream, flags, priority), stream);
}

CUresult green_stream_create(Site<Fn_cuGreenCtxStreamCreate> site, CUstream* stream, CUgreenCtx context, unsigned flags,
                             int priority) {
    Session* owner = session();
    raises(owner, priority);
    return after_creation(owner, site.real(stream, context, flags, priority), stream);
}

CUresult stream_destroy(Site<Fn_cuStreamDestroy_v2> site, CUstream stream) {
    Session* session = session_if_any();
    if (session == nullptr) return site.real(stream);
    std::vector<Lane*> lanes;
    guarded([&] {
        lanes = session->streams.closing(stream);
        for (Lane* lane : lanes) {
            session->captures.over(*lane->stream);
            // Destroying does not wait: an event tells when the rest has ended.
            const std::uint64_t covered = lane->covered.load(std::memory_order_acquire);
            if (covered > std::max(lane->watched.load(), lane->done.load())) session->completion.watch(*lane, false);
        }
    });
    const CUresult result = site.real(stream);
    for (Lane* lane : lanes) lane->retired.store(true, std::memory_order_release);
    return result;
}

CUresult stream_synchronize(Site<Fn_cuStreamSynchronize> site, CUstream stream) {
    const Before before(stream, site.per_thread);
    const CUresult result = site.real(stream);
    if (result == CUDA_SUCCESS) before.has_ended(true);
    return result;
}

CUresult stream_query(Site<Fn_cuStreamQuery> site, CUstream stream) {
    const Before before(stream, site.per_thread);
    const CUresult result = site.real(stream);
    if (result == CUDA_SUCCESS) before.has_ended(false);
    return result;
}

CUresult stream_wait_event(Site<Fn_cuStreamWaitEvent> site, CUstream stream, CUevent event, unsigned flags) {
    // Waiting for an event of a capture draws the stream into that capture: nothing of ours may come between.
    Session* session = session_if_any();
    StreamEntry* entry = nullptr;
    if (session != nullptr && session->captures.any()) {
        guarded([&] {
            entry = session->streams.entry(stream, site.per_thread);
            if (entry != nullptr) entry->joining.fetch_add(1, std::memory_order_seq_cst);
        });
        while (entry != nullptr && entry->fencing.load(std::memory_order_seq_cst)) sched_yield();
    }
    const CUresult result = site.real(stream, event, flags);
    if (entry != nullptr) entry->joining.fetch_sub(1, std::memory_order_seq_cst);
    return result;
}

CUresult event_record(Site<Fn_cuEventRecord> site, CUevent event, CUstream stream) {
    return record(event, stream, site.per_thread, [&] { return site.real(event, stream); });
}

CUresult event_record_with_flags(Site<Fn_cuEventRecordWithFlags> site, CUevent event, CUstream stream, unsigned flags) {
    return record(event, stream, site.per_thread, [&] { return site.real(event, stream, flags); });
}

CUresult event_synchronize(Site<Fn_cuEventSynchronize> site, CUevent event) {
    return await(event, true, [&] { return site.real(event); });
}

CUresult event_query(Site<Fn_cuEventQuery> site, CUevent event) {
    return await(event, false, [&] { return site.real(event); });
}

CUresult event_destroy(Site<Fn_cuEventDestroy_v2> site, CUevent event) {
    Session* session = session_if_any();
    if (session != nullptr) guarded([&] { session->captures.forget(event); });
    return site.real(event);
}

CUresult context_synchronize(Site<Fn_cuCtxSynchronize> site) {
    return synchronize_all(nullptr, [&] { return site.real(); });
}

CUresult context_synchronize_v2(Site<Fn_cuCtxSynchronize_v2> site, CUcontext context) {
    return synchronize_all(context, [&] { return site.real(context); });
}

CUresult memcpy_to_host(Site<Fn_cuMemcpyDtoH_v2> site, void* to, CUdeviceptr from, size_t bytes) {
    const Before before(nullptr, site.per_thread);
    const CUresult result = site.real(to, from, bytes);
    if (result == CUDA_SUCCESS) before.has_ended(true);
    return result;
}

}  // namespace tierline::interpose
