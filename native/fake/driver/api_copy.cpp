// Copies and memsets. The bytes move during the call; the device's copy engines take their time in the stream.
#include <algorithm>
#include <cstring>

#include "driver.hpp"

using namespace tierline::fakecuda;

namespace {

void* pointer_of(CUdeviceptr address) { return reinterpret_cast<void*>(static_cast<std::uintptr_t>(address)); }

CUresult put(Session& session, Stream& stream, void* destination, const void* source, std::size_t bytes,
             Direction direction) {
    if (const CUresult result = before_enqueue(stream); result != CUDA_SUCCESS) return result;
    if (log_enabled())
        call_detail().text("stream", stream_text(stream)).number("bytes", static_cast<std::int64_t>(bytes));
    if (stream.capture != nullptr) {
        Node* node = capture_node(stream, source != nullptr ? CU_GRAPH_NODE_TYPE_MEMCPY : CU_GRAPH_NODE_TYPE_MEMSET);
        node->destination = destination;
        node->source = source;
        node->bytes = static_cast<std::int64_t>(bytes);
        node->direction = direction;
        return CUDA_SUCCESS;
    }
    if (source != nullptr) move_bytes(destination, source, bytes);
    if (bytes == 0) return CUDA_SUCCESS;
    return enqueue(session, stream,
                   [&] { return driver().host.copy(stream.engine, static_cast<std::int64_t>(bytes), direction); });
}

CUresult finish(Session& session, const Stream& stream) {
    const OpId last = stream.last_op;
    wait_until(session, [&] { return driver().ended || driver().host.device().completed(stream.engine) >= last; });
    return CUDA_SUCCESS;
}

CUresult copy(Entry entry, void* destination, const void* source, std::size_t bytes, CUstream handle,
              bool synchronous) {
    return call(entry, Need::context, [&](Session& session) -> CUresult {
        if (destination == nullptr || source == nullptr) return bytes == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
        if (synchronous) {
            if (const CUresult result = unsafe_call(); result != CUDA_SUCCESS) return result;
        }
        Stream* stream = find_stream(handle);
        if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        const CUresult result = put(session, *stream, destination, source, bytes, direction_of(destination, source));
        return result == CUDA_SUCCESS && synchronous ? finish(session, *stream) : result;
    });
}

CUresult batch(Entry entry, CUdeviceptr* destinations, CUdeviceptr* sources, std::size_t* sizes, std::size_t count,
               std::size_t* failed, CUstream handle) {
    return call(entry, Need::context, [&](Session& session) -> CUresult {
        Stream* stream = find_stream(handle);
        // The real one takes no default stream either.
        if (stream == nullptr || stream->legacy) return CUDA_ERROR_INVALID_HANDLE;
        if (destinations == nullptr || sources == nullptr || sizes == nullptr || count == 0)
            return CUDA_ERROR_INVALID_VALUE;
        for (std::size_t i = 0; i < count; ++i) {
            void* const to_ = pointer_of(destinations[i]);
            const void* const from_ = pointer_of(sources[i]);
            const CUresult result = put(session, *stream, to_, from_, sizes[i], direction_of(to_, from_));
            if (result == CUDA_SUCCESS) continue;
            if (failed != nullptr) *failed = i;
            return result;
        }
        return CUDA_SUCCESS;
    });
}

template <class Value>
CUresult fill(Entry entry, CUdeviceptr destination, Value value, std::size_t count, CUstream handle, bool synchronous) {
    return call(entry, Need::context, [&](Session& session) -> CUresult {
        if (destination == 0) return count == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
        if (synchronous) {
            if (const CUresult result = unsafe_call(); result != CUDA_SUCCESS) return result;
        }
        Stream* stream = find_stream(handle);
        if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        auto* const place = static_cast<Value*>(pointer_of(destination));
        if (stream->capture == nullptr) std::fill_n(place, count, value);
        const CUresult result = put(session, *stream, place, nullptr, count * sizeof(Value), Direction::fill);
        return result == CUDA_SUCCESS && synchronous ? finish(session, *stream) : result;
    });
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

CUresult cuMemcpy(CUdeviceptr to_, CUdeviceptr from_, std::size_t bytes) {
    return copy(Entry::cuMemcpy, pointer_of(to_), pointer_of(from_), bytes, nullptr, true);
}
CUresult cuMemcpy_ptds(CUdeviceptr to_, CUdeviceptr from_, std::size_t bytes) {
    return copy(Entry::cuMemcpy_ptds, pointer_of(to_), pointer_of(from_), bytes, per_thread_stream(), true);
}
CUresult cuMemcpyAsync(CUdeviceptr to_, CUdeviceptr from_, std::size_t bytes, CUstream stream) {
    return copy(Entry::cuMemcpyAsync, pointer_of(to_), pointer_of(from_), bytes, stream, false);
}
CUresult cuMemcpyAsync_ptsz(CUdeviceptr to_, CUdeviceptr from_, std::size_t bytes, CUstream stream) {
    return copy(Entry::cuMemcpyAsync_ptsz, pointer_of(to_), pointer_of(from_), bytes, own_default(stream), false);
}
CUresult cuMemcpyHtoD_v2(CUdeviceptr to_, const void* from_, std::size_t bytes) {
    return copy(Entry::cuMemcpyHtoD_v2, pointer_of(to_), from_, bytes, nullptr, true);
}
CUresult cuMemcpyHtoD_v2_ptds(CUdeviceptr to_, const void* from_, std::size_t bytes) {
    return copy(Entry::cuMemcpyHtoD_v2_ptds, pointer_of(to_), from_, bytes, per_thread_stream(), true);
}
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to_, const void* from_, std::size_t bytes, CUstream stream) {
    return copy(Entry::cuMemcpyHtoDAsync_v2, pointer_of(to_), from_, bytes, stream, false);
}
CUresult cuMemcpyHtoDAsync_v2_ptsz(CUdeviceptr to_, const void* from_, std::size_t bytes, CUstream stream) {
    return copy(Entry::cuMemcpyHtoDAsync_v2_ptsz, pointer_of(to_), from_, bytes, own_default(stream), false);
}
CUresult cuMemcpyDtoH_v2(void* to_, CUdeviceptr from_, std::size_t bytes) {
    return copy(Entry::cuMemcpyDtoH_v2, to_, pointer_of(from_), bytes, nullptr, true);
}
CUresult cuMemcpyDtoH_v2_ptds(void* to_, CUdeviceptr from_, std::size_t bytes) {
    return copy(Entry::cuMemcpyDtoH_v2_ptds, to_, pointer_of(from_), bytes, per_thread_stream(), true);
}
CUresult cuMemcpyDtoHAsync_v2(void* to_, CUdeviceptr from_, std::size_t bytes, CUstream stream) {
    return copy(Entry::cuMemcpyDtoHAsync_v2, to_, pointer_of(from_), bytes, stream, false);
}
CUresult cuMemcpyDtoHAsync_v2_ptsz(void* to_, CUdeviceptr from_, std::size_t bytes, CUstream stream) {
    return copy(Entry::cuMemcpyDtoHAsync_v2_ptsz, to_, pointer_of(from_), bytes, own_default(stream), false);
}
CUresult cuMemcpyDtoD_v2(CUdeviceptr to_, CUdeviceptr from_, std::size_t bytes) {
    return copy(Entry::cuMemcpyDtoD_v2, pointer_of(to_), pointer_of(from_), bytes, nullptr, true);
}
CUresult cuMemcpyDtoD_v2_ptds(CUdeviceptr to_, CUdeviceptr from_, std::size_t bytes) {
    return copy(Entry::cuMemcpyDtoD_v2_ptds, pointer_of(to_), pointer_of(from_), bytes, per_thread_stream(), true);
}
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to_, CUdeviceptr from_, std::size_t bytes, CUstream stream) {
    return copy(Entry::cuMemcpyDtoDAsync_v2, pointer_of(to_), pointer_of(from_), bytes, stream, false);
}
CUresult cuMemcpyDtoDAsync_v2_ptsz(CUdeviceptr to_, CUdeviceptr from_, std::size_t bytes, CUstream stream) {
    return copy(Entry::cuMemcpyDtoDAsync_v2_ptsz, pointer_of(to_), pointer_of(from_), bytes, own_default(stream),
                false);
}
CUresult cuMemcpyPeerAsync(CUdeviceptr to_, CUcontext, CUdeviceptr from_, CUcontext, std::size_t bytes,
                           CUstream stream) {
    return copy(Entry::cuMemcpyPeerAsync, pointer_of(to_), pointer_of(from_), bytes, stream, false);
}
CUresult cuMemcpyPeerAsync_ptsz(CUdeviceptr to_, CUcontext, CUdeviceptr from_, CUcontext, std::size_t bytes,
                                CUstream stream) {
    return copy(Entry::cuMemcpyPeerAsync_ptsz, pointer_of(to_), pointer_of(from_), bytes, own_default(stream), false);
}
CUresult cuMemcpyBatchAsync(CUdeviceptr* to_, CUdeviceptr* from_, std::size_t* sizes, std::size_t count, void*,
                            std::size_t*, std::size_t, std::size_t* failed, CUstream stream) {
    return batch(Entry::cuMemcpyBatchAsync, to_, from_, sizes, count, failed, stream);
}
CUresult cuMemcpyBatchAsync_v2(CUdeviceptr* to_, CUdeviceptr* from_, std::size_t* sizes, std::size_t count, void*,
                               std::size_t*, std::size_t, CUstream stream) {
    return batch(Entry::cuMemcpyBatchAsync_v2, to_, from_, sizes, count, nullptr, stream);
}
CUresult cuMemcpyBatchAsync_ptsz(CUdeviceptr* to_, CUdeviceptr* from_, std::size_t* sizes, std::size_t count, void*,
                                 std::size_t*, std::size_t, std::size_t* failed, CUstream stream) {
    return batch(Entry::cuMemcpyBatchAsync_ptsz, to_, from_, sizes, count, failed, own_default(stream));
}
CUresult cuMemcpyBatchAsync_v2_ptsz(CUdeviceptr* to_, CUdeviceptr* from_, std::size_t* sizes, std::size_t count, void*,
                                    std::size_t*, std::size_t, CUstream stream) {
    return batch(Entry::cuMemcpyBatchAsync_v2_ptsz, to_, from_, sizes, count, nullptr, own_default(stream));
}
CUresult cuMemsetD8_v2(CUdeviceptr to_, unsigned char value, std::size_t count) {
    return fill(Entry::cuMemsetD8_v2, to_, value, count, nullptr, true);
}
CUresult cuMemsetD8_v2_ptds(CUdeviceptr to_, unsigned char value, std::size_t count) {
    return fill(Entry::cuMemsetD8_v2_ptds, to_, value, count, per_thread_stream(), true);
}
CUresult cuMemsetD8Async(CUdeviceptr to_, unsigned char value, std::size_t count, CUstream stream) {
    return fill(Entry::cuMemsetD8Async, to_, value, count, stream, false);
}
CUresult cuMemsetD8Async_ptsz(CUdeviceptr to_, unsigned char value, std::size_t count, CUstream stream) {
    return fill(Entry::cuMemsetD8Async_ptsz, to_, value, count, own_default(stream), false);
}
CUresult cuMemsetD16_v2(CUdeviceptr to_, unsigned short value, std::size_t count) {
    return fill(Entry::cuMemsetD16_v2, to_, value, count, nullptr, true);
}
CUresult cuMemsetD16_v2_ptds(CUdeviceptr to_, unsigned short value, std::size_t count) {
    return fill(Entry::cuMemsetD16_v2_ptds, to_, value, count, per_thread_stream(), true);
}
CUresult cuMemsetD16Async(CUdeviceptr to_, unsigned short value, std::size_t count, CUstream stream) {
    return fill(Entry::cuMemsetD16Async, to_, value, count, stream, false);
}
CUresult cuMemsetD16Async_ptsz(CUdeviceptr to_, unsigned short value, std::size_t count, CUstream stream) {
    return fill(Entry::cuMemsetD16Async_ptsz, to_, value, count, own_default(stream), false);
}
CUresult cuMemsetD32_v2(CUdeviceptr to_, unsigned int value, std::size_t count) {
    return fill(Entry::cuMemsetD32_v2, to_, value, count, nullptr, true);
}
CUresult cuMemsetD32_v2_ptds(CUdeviceptr to_, unsigned int value, std::size_t count) {
    return fill(Entry::cuMemsetD32_v2_ptds, to_, value, count, per_thread_stream(), true);
}
CUresult cuMemsetD32Async(CUdeviceptr to_, unsigned int value, std::size_t count, CUstream stream) {
    return fill(Entry::cuMemsetD32Async, to_, value, count, stream, false);
}
CUresult cuMemsetD32Async_ptsz(CUdeviceptr to_, unsigned int value, std::size_t count, CUstream stream) {
    return fill(Entry::cuMemsetD32Async_ptsz, to_, value, count, own_default(stream), false);
}

}  // extern "C"
#pragma GCC visibility pop
