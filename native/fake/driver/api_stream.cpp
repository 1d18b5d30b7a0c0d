// Streams and events.
#include <algorithm>

#include "driver.hpp"

using namespace tierline::fakecuda;

namespace {

constexpr unsigned kExternal =
    1;  // of cuEventRecordWithFlags and cuStreamWaitEvent: a node of the graph, when captured

CUresult create(Entry entry, CUstream* out, unsigned flags, int priority) {
    return call(entry, Need::context, [&](Session&) -> CUresult {
        if (out == nullptr || flags > CU_STREAM_NON_BLOCKING) return CUDA_ERROR_INVALID_VALUE;
        Status status = Status::ok;
        Context& context = *current_context();
        Stream* stream = make_stream(context, flags, std::clamp(priority, -5, 0), false, false, context.green, status);
        if (stream == nullptr) return to_result(status);
        *out = from<CUstream>(stream);
        note_launch();  // who makes a stream is about to use it
        if (log_enabled())
            call_detail()
                .text("stream", stream_text(*stream))
                .number("flags", flags)
                .number("priority", stream->priority);
        return CUDA_SUCCESS;
    });
}

CUresult destroy(Entry entry, CUstream handle) {
    return call(entry, Need::device, [&](Session&) -> CUresult {
        auto* stream = to<Stream>(handle, Tag::stream);
        if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (stream->capture != nullptr) {
            invalidate(*stream->capture);
            return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
        driver().host.destroy_stream(stream->engine);  // its queued work still runs
        auto& streams = stream->context->streams;
        streams.erase(std::remove(streams.begin(), streams.end(), stream), streams.end());
        stream->tag = Tag::dead;
        if (log_enabled()) call_detail().text("stream", stream_text(*stream));
        return CUDA_SUCCESS;
    });
}

CUresult query(Entry entry, CUstream handle) {
    return call(entry, Need::context, [&](Session& session) -> CUresult {
        Stream* stream = find_stream(handle);
        if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (const CUresult result = no_capture(*stream); result != CUDA_SUCCESS) return result;
        if (driver().host.device().idle(stream->engine)) return CUDA_SUCCESS;
        driver().host.pass(config().query_ns);
        if (!config().wall_clock) run_host_calls(session);
        return CUDA_ERROR_NOT_READY;
    });
}

CUresult synchronize(Entry entry, CUstream handle) {
    return call(entry, Need::context, [&](Session& session) -> CUresult {
        Stream* stream = find_stream(handle);
        if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (const CUresult result = no_capture(*stream); result != CUDA_SUCCESS) return result;
        // Only what is in the stream now: others may go on putting work into it.
        const OpId last = driver().host.device().submitted(stream->engine);
        wait_until(session, [&] {
            return driver().ended || stream->tag != Tag::stream ||
                   driver().host.device().completed(stream->engine) >= last;
        });
        if (log_enabled()) call_detail().text("stream", stream_text(*stream));
        return CUDA_SUCCESS;
    });
}

template <class Read>
CUresult with_stream(Entry entry, CUstream handle, Read&& read) {
    return call(entry, Need::context, [&](Session&) -> CUresult {
        Stream* stream = find_stream(handle);
        return stream != nullptr ? read(*stream) : CUDA_ERROR_INVALID_HANDLE;
    });
}

CUresult record(Entry entry, CUevent handle, CUstream stream_handle, unsigned flags) {
    return call(entry, Need::context, [&](Session& session) -> CUresult {
        auto* event = to<Event>(handle, Tag::event);
        Stream* stream = find_stream(stream_handle);
        if (event == nullptr || stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (const CUresult result = before_enqueue(*stream); result != CUDA_SUCCESS) return result;
        if (log_enabled()) call_detail().text("stream", stream_text(*stream));
        if (flags > kExternal || (flags == kExternal && stream->capture == nullptr)) return CUDA_ERROR_INVALID_VALUE;
        if (stream->capture != nullptr) {
            if (flags == kExternal) {
                capture_node(*stream, CU_GRAPH_NODE_TYPE_EVENT_RECORD)->event = event;
            } else {
                event->capture = stream->capture;
                event->tail = stream->tail;
            }
            return CUDA_SUCCESS;
        }
        if (event->engine < 0) {
            if (const Status made = driver().host.create_event(event->engine); made != Status::ok)
                return to_result(made);
        }
        event->capture.reset();
        event->tail.clear();
        event->recorded = true;
        return enqueue(session, *stream, [&] { return driver().host.event(stream->engine, event->engine); });
    });
}

// The stream joins the capture that the event was recorded in, or its branch meets another of the same capture.
CUresult wait_captured(Stream& stream, const Event& event) {
    const std::shared_ptr<Capture> capture = event.capture;
    if (capture->ended) return CUDA_ERROR_CAPTURED_EVENT;
    if (capture->invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (stream.capture == nullptr) {
        if (stream.legacy) {
            invalidate(*capture);
            return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
        }
        stream.capture = capture;
        stream.tail = event.tail;
        capture->streams.push_back(&stream);
        return CUDA_SUCCESS;
    }
    if (stream.capture != capture) {
        invalidate(*stream.capture);
        invalidate(*capture);
        return CUDA_ERROR_STREAM_CAPTURE_MERGE;
    }
    for (Node* node : event.tail) {
        if (std::find(stream.tail.begin(), stream.tail.end(), node) == stream.tail.end()) stream.tail.push_back(node);
    }
    return CUDA_SUCCESS;
}

CUresult wait_event(Entry entry, CUstream stream_handle, CUevent handle, unsigned flags) {
    return call(entry, Need::context, [&](Session& session) -> CUresult {
        Stream* stream = find_stream(stream_handle);
        auto* event = to<Event>(handle, Tag::event);
        if (event == nullptr || stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (flags > kExternal) return CUDA_ERROR_INVALID_VALUE;
        if (log_enabled()) call_detail().text("stream", stream_text(*stream));
        if (event->capture != nullptr) return wait_captured(*stream, *event);
        if (const CUresult result = before_enqueue(*stream); result != CUDA_SUCCESS) return result;
        if (stream->capture != nullptr) {
            if (flags == kExternal) {
                capture_node(*stream, CU_GRAPH_NODE_TYPE_WAIT_EVENT)->event = event;
                return CUDA_SUCCESS;
            }
            invalidate(*stream->capture);
            return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
        }
        if (!event->recorded) return CUDA_SUCCESS;
        return enqueue(session, *stream, [&] { return driver().host.wait(stream->engine, event->engine); });
    });
}

CUresult event_destroy(Entry entry, CUevent handle) {
    return call(entry, Need::device, [&](Session&) -> CUresult {
        auto* event = to<Event>(handle, Tag::event);
        if (event == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (event->engine >= 0) driver().host.destroy_event(event->engine);
        event->tag = Tag::dead;
        event->capture.reset();
        return CUDA_SUCCESS;
    });
}

// A question about an event that capture has taken over is wrong in every mode.
CUresult may_ask(Event& event) {
    if (event.capture == nullptr) return unsafe_call();
    if (!event.capture->ended) invalidate(*event.capture);
    return CUDA_ERROR_CAPTURED_EVENT;
}

CUresult elapsed(Entry entry, float* out, CUevent first, CUevent second) {
    return call(entry, Need::device, [&](Session&) -> CUresult {
        auto* start = to<Event>(first, Tag::event);
        auto* end = to<Event>(second, Tag::event);
        if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
        if (start == nullptr || end == nullptr || !start->recorded || !end->recorded ||
            ((start->flags | end->flags) & CU_EVENT_DISABLE_TIMING) != 0) {
            return CUDA_ERROR_INVALID_HANDLE;
        }
        const auto& device = driver().host.device();
        if (!device.event_done(start->engine) || !device.event_done(end->engine)) return CUDA_ERROR_NOT_READY;
        *out = static_cast<float>(
            static_cast<double>(device.event_time_ns(end->engine) - device.event_time_ns(start->engine)) / 1e6);
        return CUDA_SUCCESS;
    });
}

CUresult get_id(Entry entry, CUstream handle, unsigned long long* id) {
    return with_stream(entry, handle, [&](Stream& stream) -> CUresult {
        if (id == nullptr) return CUDA_ERROR_INVALID_VALUE;
        *id = stream.id;
        return CUDA_SUCCESS;
    });
}

CUresult get_priority(Entry entry, CUstream handle, int* priority) {
    return with_stream(entry, handle, [&](Stream& stream) -> CUresult {
        if (priority == nullptr) return CUDA_ERROR_INVALID_VALUE;
        *priority = stream.priority;
        return CUDA_SUCCESS;
    });
}

CUresult get_flags(Entry entry, CUstream handle, unsigned* flags) {
    return with_stream(entry, handle, [&](Stream& stream) -> CUresult {
        if (flags == nullptr) return CUDA_ERROR_INVALID_VALUE;
        *flags = stream.flags;
        return CUDA_SUCCESS;
    });
}

CUresult get_context(Entry entry, CUstream handle, CUcontext* out, CUgreenCtx* green) {
    return with_stream(entry, handle, [&](Stream& stream) -> CUresult {
        if (out != nullptr) {
            Context* context = stream.context;
            *out = from<CUcontext>(green != nullptr && context->parent != nullptr ? context->parent : context);
        }
        if (green != nullptr) *green = from<CUgreenCtx>(stream.green);
        return CUDA_SUCCESS;
    });
}

CUresult get_device(Entry entry, CUstream handle, CUdevice* device) {
    return with_stream(entry, handle, [&](Stream&) -> CUresult {
        *device = 0;
        return CUDA_SUCCESS;
    });
}

struct Write {
    std::uint32_t* place;
    std::uint32_t value;
};

void run_write(void* pointer) {
    const std::unique_ptr<Write> write(static_cast<Write*>(pointer));
    __atomic_store_n(write->place, write->value, __ATOMIC_RELEASE);
}

// In the stream's order, as a host function that writes.
CUresult write_value(Entry entry, CUstream handle, CUdeviceptr address, cuuint32_t value) {
    return call(entry, Need::context, [&](Session& session) -> CUresult {
        Stream* stream = find_stream(handle);
        if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (address == 0 || address % 4 != 0) return CUDA_ERROR_INVALID_VALUE;
        if (const CUresult result = before_enqueue(*stream); result != CUDA_SUCCESS) return result;
        if (stream->capture != nullptr) {
            invalidate(*stream->capture);
            return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
        auto write = std::make_unique<Write>(
            Write{reinterpret_cast<std::uint32_t*>(static_cast<std::uintptr_t>(address)), value});
        const CUresult result = enqueue_host_call(session, *stream, run_write, write.get());
        if (result == CUDA_SUCCESS) static_cast<void>(write.release());
        return result;
    });
}

CUresult wait_value(Entry entry, CUstream handle) {
    return with_stream(entry, handle, [](Stream&) -> CUresult { return CUDA_ERROR_NOT_SUPPORTED; });
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

CUresult cuStreamCreate(CUstream* out, unsigned int flags) { return create(Entry::cuStreamCreate, out, flags, 0); }
CUresult cuStreamCreateWithPriority(CUstream* out, unsigned int flags, int priority) {
    return create(Entry::cuStreamCreateWithPriority, out, flags, priority);
}
CUresult cuStreamDestroy(CUstream stream) { return destroy(Entry::cuStreamDestroy, stream); }
CUresult cuStreamDestroy_v2(CUstream stream) { return destroy(Entry::cuStreamDestroy_v2, stream); }
CUresult cuStreamQuery(CUstream stream) { return query(Entry::cuStreamQuery, stream); }
CUresult cuStreamQuery_ptsz(CUstream stream) { return query(Entry::cuStreamQuery_ptsz, own_default(stream)); }
CUresult cuStreamSynchronize(CUstream stream) { return synchronize(Entry::cuStreamSynchronize, stream); }
CUresult cuStreamSynchronize_ptsz(CUstream stream) {
    return synchronize(Entry::cuStreamSynchronize_ptsz, own_default(stream));
}
CUresult cuStreamGetId(CUstream stream, unsigned long long* id) { return get_id(Entry::cuStreamGetId, stream, id); }
CUresult cuStreamGetId_ptsz(CUstream stream, unsigned long long* id) {
    return get_id(Entry::cuStreamGetId_ptsz, own_default(stream), id);
}
CUresult cuStreamGetPriority(CUstream stream, int* priority) {
    return get_priority(Entry::cuStreamGetPriority, stream, priority);
}
CUresult cuStreamGetPriority_ptsz(CUstream stream, int* priority) {
    return get_priority(Entry::cuStreamGetPriority_ptsz, own_default(stream), priority);
}
CUresult cuStreamGetFlags(CUstream stream, unsigned int* flags) {
    return get_flags(Entry::cuStreamGetFlags, stream, flags);
}
CUresult cuStreamGetFlags_ptsz(CUstream stream, unsigned int* flags) {
    return get_flags(Entry::cuStreamGetFlags_ptsz, own_default(stream), flags);
}
CUresult cuStreamGetCtx(CUstream stream, CUcontext* out) {
    return get_context(Entry::cuStreamGetCtx, stream, out, nullptr);
}
CUresult cuStreamGetCtx_ptsz(CUstream stream, CUcontext* out) {
    return get_context(Entry::cuStreamGetCtx_ptsz, own_default(stream), out, nullptr);
}
CUresult cuStreamGetCtx_v2(CUstream stream, CUcontext* out, CUgreenCtx* green) {
    return get_context(Entry::cuStreamGetCtx_v2, stream, out, green);
}
CUresult cuStreamGetCtx_v2_ptsz(CUstream stream, CUcontext* out, CUgreenCtx* green) {
    return get_context(Entry::cuStreamGetCtx_v2_ptsz, own_default(stream), out, green);
}
CUresult cuStreamGetGreenCtx(CUstream stream, CUgreenCtx* out) {
    return get_context(Entry::cuStreamGetGreenCtx, stream, nullptr, out);
}
CUresult cuStreamGetDevice(CUstream stream, CUdevice* device) {
    return get_device(Entry::cuStreamGetDevice, stream, device);
}
CUresult cuStreamGetDevice_ptsz(CUstream stream, CUdevice* device) {
    return get_device(Entry::cuStreamGetDevice_ptsz, own_default(stream), device);
}
CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned int flags) {
    return wait_event(Entry::cuStreamWaitEvent, stream, event, flags);
}
CUresult cuStreamWaitEvent_ptsz(CUstream stream, CUevent event, unsigned int flags) {
    return wait_event(Entry::cuStreamWaitEvent_ptsz, own_default(stream), event, flags);
}
CUresult cuStreamWriteValue32_v2(CUstream stream, CUdeviceptr address, cuuint32_t value, unsigned int) {
    return write_value(Entry::cuStreamWriteValue32_v2, stream, address, value);
}
CUresult cuStreamWriteValue32_v2_ptsz(CUstream stream, CUdeviceptr address, cuuint32_t value, unsigned int) {
    return write_value(Entry::cuStreamWriteValue32_v2_ptsz, own_default(stream), address, value);
}
CUresult cuStreamWaitValue32_v2(CUstream stream, CUdeviceptr, cuuint32_t, unsigned int) {
    return wait_value(Entry::cuStreamWaitValue32_v2, stream);
}
CUresult cuStreamWaitValue32_v2_ptsz(CUstream stream, CUdeviceptr, cuuint32_t, unsigned int) {
    return wait_value(Entry::cuStreamWaitValue32_v2_ptsz, own_default(stream));
}

CUresult cuEventCreate(CUevent* out, unsigned int flags) {
    return call(Entry::cuEventCreate, Need::context, [&](Session&) -> CUresult {
        if (out == nullptr || flags > 7) return CUDA_ERROR_INVALID_VALUE;
        auto* event = new Event;
        event->flags = flags;
        *out = from<CUevent>(event);
        return CUDA_SUCCESS;
    });
}
CUresult cuEventDestroy(CUevent event) { return event_destroy(Entry::cuEventDestroy, event); }
CUresult cuEventDestroy_v2(CUevent event) { return event_destroy(Entry::cuEventDestroy_v2, event); }
CUresult cuEventRecord(CUevent event, CUstream stream) { return record(Entry::cuEventRecord, event, stream, 0); }
CUresult cuEventRecord_ptsz(CUevent event, CUstream stream) {
    return record(Entry::cuEventRecord_ptsz, event, own_default(stream), 0);
}
CUresult cuEventRecordWithFlags(CUevent event, CUstream stream, unsigned int flags) {
    return record(Entry::cuEventRecordWithFlags, event, stream, flags);
}
CUresult cuEventRecordWithFlags_ptsz(CUevent event, CUstream stream, unsigned int flags) {
    return record(Entry::cuEventRecordWithFlags_ptsz, event, own_default(stream), flags);
}

CUresult cuEventQuery(CUevent handle) {
    return call(Entry::cuEventQuery, Need::device, [&](Session& session) -> CUresult {
        auto* event = to<Event>(handle, Tag::event);
        if (event == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (const CUresult result = may_ask(*event); result != CUDA_SUCCESS) return result;
        if (!event->recorded || driver().host.device().event_done(event->engine)) return CUDA_SUCCESS;
        driver().host.pass(config().query_ns);
        if (!config().wall_clock) run_host_calls(session);
        return CUDA_ERROR_NOT_READY;
    });
}

CUresult cuEventSynchronize(CUevent handle) {
    return call(Entry::cuEventSynchronize, Need::device, [&](Session& session) -> CUresult {
        auto* event = to<Event>(handle, Tag::event);
        if (event == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (const CUresult result = may_ask(*event); result != CUDA_SUCCESS) return result;
        if (!event->recorded) return CUDA_SUCCESS;
        wait_until(session, [&] {
            return driver().ended || event->tag != Tag::event || driver().host.device().event_done(event->engine);
        });
        return CUDA_SUCCESS;
    });
}

CUresult cuEventElapsedTime(float* out, CUevent start, CUevent end) {
    return elapsed(Entry::cuEventElapsedTime, out, start, end);
}
CUresult cuEventElapsedTime_v2(float* out, CUevent start, CUevent end) {
    return elapsed(Entry::cuEventElapsedTime_v2, out, start, end);
}

}  // extern "C"
#pragma GCC visibility pop
