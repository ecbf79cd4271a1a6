// Streams, events, and when what waits in them is carried out.

#include "null_cuda.h"

#include <map>
#include <set>

namespace null_cuda {

namespace {

struct Event {
    int device = 0;
    Stream* stream = nullptr;  // where it was recorded; none before that
    uint64_t position = 0;     // done when the stream has done so many operations

    bool is_done() const { return stream == nullptr || stream->done >= position; }
};

Event& event_of(cudaEvent_t handle) { return *reinterpret_cast<Event*>(handle); }

// All that exist. They are few, and torch keeps its own for ever.
std::set<Stream*>& streams() {
    static auto* made = new std::set<Stream*>;
    return *made;
}

Stream* make_stream(int device) {
    auto* stream = new Stream;
    stream->device = device;
    streams().insert(stream);
    return stream;
}

Stream& default_stream(int device) {
    static auto* made = new std::map<int, Stream*>;
    Stream*& stream = (*made)[device];
    if (stream == nullptr) stream = make_stream(device);
    return *stream;
}

cudaError_t create_stream(cudaStream_t* handle) {
    touch("stream");
    Locked locked;
    *handle = reinterpret_cast<cudaStream_t>(make_stream(current_device()));
    return cudaSuccess;
}

cudaError_t create_event(cudaEvent_t* handle) {
    touch("event");
    auto* event = new Event;
    event->device = current_device();
    *handle = reinterpret_cast<cudaEvent_t>(event);
    return cudaSuccess;
}

}  // namespace

Stream& stream_of(cudaStream_t handle) {
    Locked locked;
    const bool is_default = handle == nullptr || handle == cudaStreamLegacy || handle == cudaStreamPerThread;
    return is_default ? default_stream(current_device()) : *reinterpret_cast<Stream*>(handle);
}

void enqueue(Stream& stream, std::function<void()> operation) {
    Locked locked;
    stream.waiting.push_back(std::move(operation));
    ++stream.queued;
}

void run_until(Stream& stream, uint64_t position) {
    Locked locked;
    while (stream.done < position && !stream.waiting.empty()) {
        auto operation = std::move(stream.waiting.front());
        stream.waiting.pop_front();
        operation();
        ++stream.done;
    }
}

void run_device(int device) {
    Locked locked;
    for (Stream* stream : streams()) {
        if (stream->device == device) run_until(*stream, stream->queued);
    }
}

void count_sync(const char* call) { count("syncs", call); }

}  // namespace null_cuda

using namespace null_cuda;

extern "C" {

cudaError_t cudaStreamCreate(cudaStream_t* handle) { return create_stream(handle); }

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* handle, unsigned, int) { return create_stream(handle); }

cudaError_t cudaStreamDestroy(cudaStream_t handle) {
    Locked locked;  // its memory stays: an event may name it
    Stream& stream = stream_of(handle);
    run_until(stream, stream.queued);
    return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t handle) {
    Locked locked;
    const Stream& stream = stream_of(handle);
    return stream.done < stream.queued ? cudaErrorNotReady : cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
    Locked locked;
    touch("synchronize");
    count_sync("cudaStreamSynchronize");
    Stream& stream = stream_of(handle);
    run_until(stream, stream.queued);
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
    Locked locked;
    touch("synchronize");
    count_sync("cudaDeviceSynchronize");
    run_device(current_device());
    return cudaSuccess;
}

cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) {
    *priority = 0;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
    *status = cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* status, unsigned long long* id,
                                     cudaGraph_t*, const cudaGraphNode_t**, const cudaGraphEdgeData**, size_t*) {
    *status = cudaStreamCaptureStatusNone;
    if (id != nullptr) *id = 0;
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event_handle, unsigned) {
    Locked locked;
    touch("wait event");
    count("events", "cudaStreamWaitEvent");
    const Event event = event_of(event_handle);  // as it is now: it may be recorded again
    if (event.stream == nullptr) return cudaSuccess;
    enqueue(stream_of(handle), [event] { run_until(*event.stream, event.position); });
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* handle) { return create_event(handle); }

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* handle, unsigned) { return create_event(handle); }

cudaError_t cudaEventDestroy(cudaEvent_t handle) {
    delete &event_of(handle);
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t stream_handle) {
    Locked locked;
    touch("record event");
    count("events", "cudaEventRecord");
    Event& event = event_of(handle);
    Stream& stream = stream_of(stream_handle);
    if (event.device != stream.device) return failed(cudaErrorInvalidResourceHandle);
    event.stream = &stream;
    event.position = stream.queued;
    return cudaSuccess;
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t handle, cudaStream_t stream, unsigned) {
    return cudaEventRecord(handle, stream);
}

cudaError_t cudaEventQuery(cudaEvent_t handle) {
    Locked locked;
    return event_of(handle).is_done() ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
    Locked locked;
    count_sync("cudaEventSynchronize");
    const Event& event = event_of(handle);
    if (event.stream != nullptr) run_until(*event.stream, event.position);
    return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
    *milliseconds = 1;  // no time passes here
    return cudaSuccess;
}

}  // extern "C"
