// The rules of stream capture, as cuda.h states them for cuThreadExchangeStreamCaptureMode and cuStreamBeginCapture.
#include <algorithm>

#include "driver.hpp"

namespace tierline::fakecuda {
namespace {

// The legacy stream would have to wait for a blocking stream that captures.
CUresult implicit_dependency(const Stream& stream) {
    if (!stream.legacy) return CUDA_SUCCESS;
    for (const auto& capture : driver().captures) {
        if (capture->invalidated || capture->origin->context != stream.context) continue;
        for (const Stream* member : capture->streams) {
            if ((member->flags & CU_STREAM_NON_BLOCKING) != 0) continue;
            invalidate(*capture);
            return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
        }
    }
    return CUDA_SUCCESS;
}

}  // namespace

void invalidate(Capture& capture) { capture.invalidated = true; }

CUresult unsafe_call() {
    const CUstreamCaptureMode mode = thread_capture_mode();
    if (mode == CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_SUCCESS;
    CUresult result = CUDA_SUCCESS;
    for (const auto& capture : driver().captures) {
        if (capture->invalidated || capture->mode == CU_STREAM_CAPTURE_MODE_RELAXED) continue;
        const bool own = capture->thread == thread_number();
        const bool others = mode == CU_STREAM_CAPTURE_MODE_GLOBAL && capture->mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
        if (!own && !others) continue;
        invalidate(*capture);
        result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    return result;
}

CUresult before_enqueue(Stream& stream) {
    if (stream.capture != nullptr && stream.capture->invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    return implicit_dependency(stream);
}

CUresult no_capture(Stream& stream) {
    if (stream.capture != nullptr) {
        if (stream.capture->invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        invalidate(*stream.capture);
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    if (const CUresult result = implicit_dependency(stream); result != CUDA_SUCCESS) return result;
    return unsafe_call();
}

Node* capture_node(Stream& stream, CUgraphNodeType type) {
    auto* node = new Node;  // belongs to its graph, whose memory stays (see objects.hpp)
    node->type = type;
    node->graph = stream.capture->graph;
    node->after = stream.tail;
    for (Node* earlier : node->after) earlier->has_dependents = true;
    stream.capture->graph->nodes.push_back(node);
    stream.capture->nodes.push_back(node);
    stream.tail.assign(1, node);
    return node;
}

}  // namespace tierline::fakecuda

using namespace tierline::fakecuda;

namespace {

CUresult begin(Entry entry, CUstream handle, Graph* into, const CUgraphNode* after, std::size_t count,
               CUstreamCaptureMode mode) {
    return call(entry, Need::context, [&](Session&) -> CUresult {
        Stream* stream = find_stream(handle);
        if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (mode < CU_STREAM_CAPTURE_MODE_GLOBAL || mode > CU_STREAM_CAPTURE_MODE_RELAXED)
            return CUDA_ERROR_INVALID_VALUE;
        if (stream->legacy) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        if (stream->capture != nullptr) return CUDA_ERROR_ILLEGAL_STATE;
        Driver& d = driver();
        auto capture = std::make_shared<Capture>();
        capture->id = d.next_id++;
        capture->mode = mode;
        capture->thread = thread_number();
        capture->origin = stream;
        capture->graph = into != nullptr ? into : new Graph;
        capture->streams.push_back(stream);
        stream->capture = capture;
        stream->tail.clear();
        for (std::size_t i = 0; i < count; ++i) {
            auto* node = to<Node>(after[i], Tag::node);
            if (node != nullptr) stream->tail.push_back(node);
        }
        d.captures.push_back(std::move(capture));
        if (log_enabled()) call_detail().text("stream", stream_text(*stream)).number("mode", mode);
        return CUDA_SUCCESS;
    });
}

CUresult end(Entry entry, CUstream handle, CUgraph* out) {
    return call(entry, Need::context, [&](Session&) -> CUresult {
        Stream* stream = find_stream(handle);
        if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
        *out = nullptr;
        const std::shared_ptr<Capture> capture = stream->capture;
        if (capture == nullptr) return CUDA_ERROR_ILLEGAL_STATE;
        if (capture->origin != stream) {
            invalidate(*capture);
            return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
        }
        if (capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED && capture->thread != thread_number()) {
            return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
        }
        CUresult result = capture->invalidated ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_SUCCESS;
        if (result == CUDA_SUCCESS) {
            // Work forked to other streams must have come back: every node that nothing follows is before this point.
            for (Node* node : capture->nodes) {
                const bool here = std::find(stream->tail.begin(), stream->tail.end(), node) != stream->tail.end();
                if (!node->has_dependents && !here) result = CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
            }
        }
        for (Stream* member : capture->streams) {
            member->capture.reset();
            member->tail.clear();
        }
        capture->ended = true;
        auto& all = driver().captures;
        all.erase(std::remove(all.begin(), all.end(), capture), all.end());
        if (result == CUDA_SUCCESS) *out = from<CUgraph>(capture->graph);
        if (log_enabled())
            call_detail()
                .text("stream", stream_text(*stream))
                .number("nodes", static_cast<std::int64_t>(capture->nodes.size()));
        return result;
    });
}

CUresult status(Entry entry, CUstream handle, CUstreamCaptureStatus* out, std::uint64_t* id, CUgraph* graph,
                const CUgraphNode** dependencies, std::size_t* count) {
    return call(entry, Need::context, [&](Session&) -> CUresult {
        Stream* stream = find_stream(handle);
        if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
        const Capture* capture = stream->capture.get();
        *out = CU_STREAM_CAPTURE_STATUS_NONE;
        if (id != nullptr) *id = 0;
        if (capture == nullptr) return stream->legacy ? before_enqueue(*stream) : CUDA_SUCCESS;
        *out = capture->invalidated ? CU_STREAM_CAPTURE_STATUS_INVALIDATED : CU_STREAM_CAPTURE_STATUS_ACTIVE;
        if (capture->invalidated) return CUDA_SUCCESS;
        if (id != nullptr) *id = capture->id;
        if (graph != nullptr) *graph = from<CUgraph>(capture->graph);
        if (dependencies != nullptr) *dependencies = reinterpret_cast<const CUgraphNode*>(stream->tail.data());
        if (count != nullptr) *count = stream->tail.size();
        return CUDA_SUCCESS;
    });
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// The form of CUDA 10.0 has no mode: it is global.
CUresult cuStreamBeginCapture(CUstream stream) {
    return begin(Entry::cuStreamBeginCapture, stream, nullptr, nullptr, 0, CU_STREAM_CAPTURE_MODE_GLOBAL);
}
CUresult cuStreamBeginCapture_ptsz(CUstream stream) {
    return begin(Entry::cuStreamBeginCapture_ptsz, own_default(stream), nullptr, nullptr, 0,
                 CU_STREAM_CAPTURE_MODE_GLOBAL);
}
CUresult cuStreamBeginCapture_v2(CUstream stream, CUstreamCaptureMode mode) {
    return begin(Entry::cuStreamBeginCapture_v2, stream, nullptr, nullptr, 0, mode);
}
CUresult cuStreamBeginCapture_v2_ptsz(CUstream stream, CUstreamCaptureMode mode) {
    return begin(Entry::cuStreamBeginCapture_v2_ptsz, own_default(stream), nullptr, nullptr, 0, mode);
}
CUresult cuStreamBeginCaptureToGraph(CUstream stream, CUgraph graph, const CUgraphNode* after, const CUgraphEdgeData*,
                                     std::size_t count, CUstreamCaptureMode mode) {
    return begin(Entry::cuStreamBeginCaptureToGraph, stream, to<Graph>(graph, Tag::graph), after, count, mode);
}
CUresult cuStreamBeginCaptureToGraph_ptsz(CUstream stream, CUgraph graph, const CUgraphNode* after,
                                          const CUgraphEdgeData*, std::size_t count, CUstreamCaptureMode mode) {
    return begin(Entry::cuStreamBeginCaptureToGraph_ptsz, own_default(stream), to<Graph>(graph, Tag::graph), after,
                 count, mode);
}
CUresult cuStreamEndCapture(CUstream stream, CUgraph* out) { return end(Entry::cuStreamEndCapture, stream, out); }
CUresult cuStreamEndCapture_ptsz(CUstream stream, CUgraph* out) {
    return end(Entry::cuStreamEndCapture_ptsz, own_default(stream), out);
}
CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus* out) {
    return status(Entry::cuStreamIsCapturing, stream, out, nullptr, nullptr, nullptr, nullptr);
}
CUresult cuStreamIsCapturing_ptsz(CUstream stream, CUstreamCaptureStatus* out) {
    return status(Entry::cuStreamIsCapturing_ptsz, own_default(stream), out, nullptr, nullptr, nullptr, nullptr);
}
CUresult cuStreamGetCaptureInfo(CUstream stream, CUstreamCaptureStatus* out, cuuint64_t* id) {
    return status(Entry::cuStreamGetCaptureInfo, stream, out, id, nullptr, nullptr, nullptr);
}
CUresult cuStreamGetCaptureInfo_ptsz(CUstream stream, CUstreamCaptureStatus* out, cuuint64_t* id) {
    return status(Entry::cuStreamGetCaptureInfo_ptsz, own_default(stream), out, id, nullptr, nullptr, nullptr);
}
CUresult cuStreamGetCaptureInfo_v2(CUstream stream, CUstreamCaptureStatus* out, cuuint64_t* id, CUgraph* graph,
                                   const CUgraphNode** dependencies, std::size_t* count) {
    return status(Entry::cuStreamGetCaptureInfo_v2, stream, out, id, graph, dependencies, count);
}
CUresult cuStreamGetCaptureInfo_v2_ptsz(CUstream stream, CUstreamCaptureStatus* out, cuuint64_t* id, CUgraph* graph,
                                        const CUgraphNode** dependencies, std::size_t* count) {
    return status(Entry::cuStreamGetCaptureInfo_v2_ptsz, own_default(stream), out, id, graph, dependencies, count);
}
CUresult cuStreamGetCaptureInfo_v3(CUstream stream, CUstreamCaptureStatus* out, cuuint64_t* id, CUgraph* graph,
                                   const CUgraphNode** dependencies, const CUgraphEdgeData** edges,
                                   std::size_t* count) {
    if (edges != nullptr) *edges = nullptr;
    return status(Entry::cuStreamGetCaptureInfo_v3, stream, out, id, graph, dependencies, count);
}
CUresult cuStreamGetCaptureInfo_v3_ptsz(CUstream stream, CUstreamCaptureStatus* out, cuuint64_t* id, CUgraph* graph,
                                        const CUgraphNode** dependencies, const CUgraphEdgeData** edges,
                                        std::size_t* count) {
    if (edges != nullptr) *edges = nullptr;
    return status(Entry::cuStreamGetCaptureInfo_v3_ptsz, own_default(stream), out, id, graph, dependencies, count);
}

CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
    return call(Entry::cuThreadExchangeStreamCaptureMode, Need::device, [&](Session&) -> CUresult {
        if (mode == nullptr || *mode < CU_STREAM_CAPTURE_MODE_GLOBAL || *mode > CU_STREAM_CAPTURE_MODE_RELAXED) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        std::swap(*mode, thread_capture_mode());
        return CUDA_SUCCESS;
    });
}

}  // extern "C"
#pragma GCC visibility pop
