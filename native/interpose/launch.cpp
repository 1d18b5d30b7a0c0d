// The gate: a launch is held in the thread that makes it until it is admitted, and then goes to the program's own
// stream with the program's own arguments. Nothing is copied or put off.
#include "driver.hpp"
#include "guarded.hpp"
#include "hooks.hpp"
#include "session.hpp"
#include "thread.hpp"

namespace tierline::interpose {

namespace {

constexpr std::uint64_t kPassed = std::uint64_t{1} << 63;  // mark of a launch that goes by on purpose

// How a launch stands to the gate.
struct Passage {
    int row = -1;
    bool exempt = false;     // is never held and is not counted as load
    bool dependent = false;  // may begin before its predecessor in the stream has ended: one unit with it
};

// Leaves the mark for as long as the real call runs.
class Marked {
public:
    explicit Marked(std::uint64_t ticket) { t_thread.ticket = ticket; }
    ~Marked() { t_thread.ticket = 0; }
    Marked(const Marked&) = delete;
    Marked& operator=(const Marked&) = delete;
};

template <class Real>
CUresult pass_marked(Real&& real) {
    const Marked marked(kPassed);
    return real();
}

CUresult record(CUevent event, const Lane& lane, bool per_thread) {
    const Driver& table = *driver();
    if (per_thread && lane.stream->default_per_thread && table.cuEventRecord_ptsz != nullptr) {
        return table.cuEventRecord_ptsz(event, lane.stream->handle);
    }
    return table.cuEventRecord(event, lane.stream->handle);
}

// A launch that is timed alone: an event before and one behind it.
template <class Real>
CUresult launch_timed(Session& session, Lane& lane, const Ticket& ticket, int row, bool per_thread, Real&& real) {
    Context& context = *lane.stream->context;
    CUevent start = nullptr;
    CUevent end = nullptr;
    guarded([&] {
        start = context.take_event(true);
        end = start != nullptr ? context.take_event(true) : nullptr;
    });
    const bool timed = end != nullptr && record(start, lane, per_thread) == CUDA_SUCCESS;
    const CUresult result = real();
    const std::uint64_t covered = lane.returned(ticket.seq);
    const bool recorded = timed && result == CUDA_SUCCESS && covered >= ticket.seq &&
                          record(end, lane, per_thread) == CUDA_SUCCESS &&
                          guarded([&] { session.completion.add({&lane, covered, end, start, row}); });
    if (!recorded) {
        guarded([&] {
            context.give_back(start, true);
            context.give_back(end, true);
        });
        lane.owe(ticket.seq);
    }
    return result;
}

template <class Real>
CUresult gated(bool per_thread, const Passage& passage, Session& session, Lane& lane, Real&& real) {
    Request request;
    request.client = lane.client->slot;
    request.stream = lane.slot.load(std::memory_order_relaxed);
    request.kernel = passage.row;
    request.exempt = passage.exempt || passage.dependent;
    if (request.exempt) {
        session.arbiter.admit(request);  // counts it
        const CUresult result = pass_marked(real);
        // The event behind the predecessor is replaced by one behind both.
        if (passage.dependent && result == CUDA_SUCCESS) {
            const std::uint64_t covered = lane.covered.load(std::memory_order_acquire);
            if (covered != 0 && lane.watched.load() == covered && lane.done.load() < covered) {
                guarded([&] { session.completion.watch(lane, per_thread); });
            }
        }
        return result;
    }
    lane.in_call.fetch_add(1, std::memory_order_acq_rel);
    const Ticket ticket = session.arbiter.admit(request);
    const Marked marked(kPassed | static_cast<std::uint64_t>(ticket.stream) << 48 | ticket.seq);
    if (__builtin_expect(ticket.learn, 0)) {
        const CUresult result = launch_timed(session, lane, ticket, passage.row, per_thread, real);
        if (result != CUDA_SUCCESS) session.arbiter.cancel(ticket);
        return result;
    }
    const CUresult result = real();
    const std::uint64_t covered = lane.returned(ticket.seq);
    if (__builtin_expect(result != CUDA_SUCCESS, 0)) {
        session.arbiter.cancel(ticket);
        return result;
    }
    // The poller cannot record into another thread's default stream, so there the thread does it itself.
    const bool watch = ticket.track || (lane.stream->default_per_thread && session.arbiter.contended());
    if (watch && ticket.seq != 0) {
        bool watched = false;
        if (covered >= ticket.seq) guarded([&] { watched = session.completion.watch(lane, per_thread); });
        if (!watched) lane.owe(ticket.seq);
    }
    return result;
}

// Finds the lane, then lets `choose` say how the launch stands to the gate. Whatever fails inside us, the call passes.
template <class Choose, class Real>
CUresult through_gate(CUstream stream, bool per_thread, Choose&& choose, Real&& real) {
    Session* owner = session();
    if (owner == nullptr) return real();
    Lane* lane = nullptr;
    Passage passage;
    const bool ready = guarded([&] {
        lane = owner->streams.lane(stream, per_thread);
        if (lane == nullptr) return;
        owner->completion.start();
        if (owner->captures.any() && owner->captures.is_capturing(*lane->stream, stream, per_thread)) {
            passage.exempt = true;
        } else {
            choose(*owner, passage);
        }
    });
    if (!ready) return real();
    if (lane == nullptr) return pass_marked(real);  // another device, or no context: not ours to schedule
    return gated(per_thread, passage, *owner, *lane, real);
}

}  // namespace

CUresult launch_kernel(Site<Fn_cuLaunchKernel> site, CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                       unsigned by, unsigned bz, unsigned smem, CUstream stream, void** params, void** extra) {
    return through_gate(
        stream, site.per_thread,
        [&](Session& session, Passage& passage) {
            const KernelChoice choice = session.kernels.choose({f, {gx, gy, gz}, {bx, by, bz}, smem});
            passage.row = choice.row;
            passage.exempt = choice.exempt;
        },
        [&] { return site.real(f, gx, gy, gz, bx, by, bz, smem, stream, params, extra); });
}

CUresult launch_kernel_ex(Site<Fn_cuLaunchKernelEx> site, const CUlaunchConfig* config, CUfunction f, void** params,
                          void** extra) {
    if (config == nullptr) return site.real(config, f, params, extra);
    return through_gate(
        config->hStream, site.per_thread,
        [&](Session& session, Passage& passage) {
            const LaunchShape shape{f,
                                    {config->gridDimX, config->gridDimY, config->gridDimZ},
                                    {config->blockDimX, config->blockDimY, config->blockDimZ},
                                    config->sharedMemBytes};
            const KernelChoice choice = session.kernels.choose(shape);
            passage.row = choice.row;
            passage.exempt = choice.exempt;
            for (unsigned index = 0; config->attrs != nullptr && index < config->numAttrs; ++index) {
                const CUlaunchAttribute& attribute = config->attrs[index];
                if (attribute.id == CU_LAUNCH_ATTRIBUTE_COOPERATIVE && attribute.value.cooperative != 0) {
                    passage.exempt = true;
                }
                if (attribute.id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION &&
                    attribute.value.programmaticStreamSerializationAllowed != 0) {
                    passage.dependent = true;
                }
            }
        },
        [&] { return site.real(config, f, params, extra); });
}

CUresult launch_cooperative(Site<Fn_cuLaunchCooperativeKernel> site, CUfunction f, unsigned gx, unsigned gy,
                            unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned smem, CUstream stream,
                            void** params) {
    return through_gate(
        stream, site.per_thread, [](Session&, Passage& passage) { passage.exempt = true; },
        [&] { return site.real(f, gx, gy, gz, bx, by, bz, smem, stream, params); });
}

CUresult graph_launch(Site<Fn_cuGraphLaunch> site, CUgraphExec exec, CUstream stream) {
    return through_gate(
        stream, site.per_thread,
        [&](Session& session, Passage& passage) {
            const GraphUnit unit = session.captures.unit_of(exec);
            passage.row = unit.row;
            passage.exempt = unit.exempt || unit.empty;
        },
        [&] { return site.real(exec, stream); });
}

}  // namespace tierline::interpose
