// SPDX-License-Identifier: BSD-3-Clause
// Stand-in for the CUDA runtime library: streams, events, captures and graphs.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <set>

#include "device.h"
#include "streams.h"

namespace {

using cuda_on_cpu::Capture;
using cuda_on_cpu::device;
using cuda_on_cpu::find_stream;
using cuda_on_cpu::Node;
using cuda_on_cpu::set_error;
using cuda_on_cpu::Stream;

// In a capture an event stands for what its stream had been given so far.
struct Event {
  bool has_time = true;
  int64_t recorded = -1;  // nanoseconds; -1: never
  std::shared_ptr<Capture> capture;
  const Stream* stream = nullptr;
  uint64_t submitted = 0;
};

std::set<const void*>& events() {
  static auto* const the_events = new std::set<const void*>;
  return *the_events;
}

Event* find_event(cudaEvent_t handle) {
  if (events().count(handle) != 0) return reinterpret_cast<Event*>(handle);
  set_error(cudaErrorInvalidResourceHandle, "an event that does not exist");
  return nullptr;
}

// The nodes of a graph, in an order in which they may run; those of an executable graph likewise.
struct Graph {
  std::vector<Node> nodes;
};
Graph* graph_of(cudaGraph_t handle) { return reinterpret_cast<Graph*>(handle); }
Graph* graph_of(cudaGraphExec_t handle) { return reinterpret_cast<Graph*>(handle); }

cudaError_t sticky_error() { return device().is_sticky ? device().error : cudaSuccess; }

cudaError_t invalidate(Capture& capture, cudaError_t error, const char* what) {
  capture.is_invalid = true;
  return set_error(error, what);
}

// A call that waits for a stream, or asks after it.
cudaError_t wait_for(cudaStream_t handle, const char* what) {
  Stream* const stream = find_stream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (stream->capture) {
    return invalidate(*stream->capture, cudaErrorStreamCaptureUnsupported, what);
  }
  if (const cudaError_t error = cuda_on_cpu::check_unsafe("a wait for a stream")) return error;
  return sticky_error();
}

cudaError_t wait_for(cudaEvent_t handle) {
  const Event* const event = find_event(handle);
  if (event == nullptr) return cudaErrorInvalidResourceHandle;
  if (event->capture) return set_error(cudaErrorCapturedEvent, "a wait for a captured event");
  if (const cudaError_t error = cuda_on_cpu::check_unsafe("a wait for an event")) return error;
  return sticky_error();
}

}  // namespace

extern "C" {

cudaError_t cudaDeviceSynchronize() {
  if (const cudaError_t error = cuda_on_cpu::check_waits("cudaDeviceSynchronize")) return error;
  return sticky_error();
}

// ---- Streams
// -------------------------------------------------------------------------------------

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  Stream* const created = cuda_on_cpu::create_stream((flags & cudaStreamNonBlocking) == 0);
  *stream = reinterpret_cast<cudaStream_t>(created);
  return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
  return cudaStreamCreateWithFlags(stream, flags);
}
cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  Stream* const stream = find_stream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  cuda_on_cpu::destroy_stream(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return wait_for(stream, "cudaStreamSynchronize of a stream that is captured");
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return wait_for(stream, "cudaStreamQuery of a stream that is captured");
}
cudaError_t cudaStreamGetDevice(cudaStream_t, int* index) { return cudaGetDevice(index); }

// ---- Events
// --------------------------------------------------------------------------------------

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  auto* const created = new Event;
  created->has_time = (flags & cudaEventDisableTiming) == 0;
  events().insert(created);
  *event = reinterpret_cast<cudaEvent_t>(created);
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, cudaEventDefault);
}
cudaError_t cudaEventDestroy(cudaEvent_t handle) {
  const Event* const event = find_event(handle);
  if (event == nullptr) return cudaErrorInvalidResourceHandle;
  events().erase(event);
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t stream_handle) {
  Event* const event = find_event(handle);
  const Stream* const stream = find_stream(stream_handle);
  if (event == nullptr || stream == nullptr) return cudaErrorInvalidResourceHandle;
  event->capture = stream->capture;
  event->stream = stream;
  event->submitted = stream->submitted;
  event->recorded = stream->capture ? -1 : device().nanoseconds;
  return sticky_error();
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
  return cudaEventRecord(event, stream);
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return wait_for(event); }
cudaError_t cudaEventQuery(cudaEvent_t event) { return wait_for(event); }

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin_handle,
                                 cudaEvent_t end_handle) {
  const Event* const begin = find_event(begin_handle);
  const Event* const end = find_event(end_handle);
  if (begin == nullptr || end == nullptr) return cudaErrorInvalidResourceHandle;
  for (const Event* event : {begin, end}) {
    if (event->capture) return set_error(cudaErrorCapturedEvent, "the time of a captured event");
    if (!event->has_time || event->recorded < 0) {
      return set_error(cudaErrorInvalidResourceHandle, "the time of an event that has none");
    }
  }
  *milliseconds = static_cast<float>(static_cast<double>(end->recorded - begin->recorded) * 1e-6);
  return sticky_error();
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event_handle, unsigned) {
  Stream* const stream = find_stream(handle);
  const Event* const event = find_event(event_handle);
  if (stream == nullptr || event == nullptr) return cudaErrorInvalidResourceHandle;
  const auto& capture = event->capture;
  if (!capture) {
    if (!stream->capture || event->recorded < 0) return sticky_error();
    return invalidate(*stream->capture, cudaErrorStreamCaptureIsolation,
                      "a captured stream is to wait for what is not captured");
  }
  if (stream->is_legacy) {
    return invalidate(*capture, cudaErrorStreamCaptureImplicit,
                      "the legacy stream is to wait for a captured event");
  }
  if (stream->capture && stream->capture != capture) {
    return invalidate(*capture, cudaErrorStreamCaptureMerge, "two captures would become one");
  }
  if (!stream->capture) {
    stream->capture = capture;
    capture->unjoined.insert(stream);
  } else if (stream != event->stream && event->submitted == event->stream->submitted) {
    capture->unjoined.erase(event->stream);
  }
  return cudaSuccess;
}

// ---- Captures
// ------------------------------------------------------------------------------------

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, cuda_on_cpu::thread_capture_mode());
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  Stream* const stream = find_stream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (stream->is_legacy) {
    return set_error(cudaErrorStreamCaptureUnsupported, "the legacy stream cannot be captured");
  }
  if (stream->capture) return set_error(cudaErrorIllegalState, "the stream is captured already");
  cuda_on_cpu::begin_capture(*stream, mode);
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  *graph = nullptr;
  Stream* const stream = find_stream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  const std::shared_ptr<Capture> capture = stream->capture;
  if (!capture) return set_error(cudaErrorIllegalState, "the stream is not captured");
  if (capture->mode != cudaStreamCaptureModeRelaxed &&
      capture->thread != std::this_thread::get_id()) {
    return set_error(cudaErrorStreamCaptureWrongThread, "another thread began the capture");
  }
  if (capture->origin != stream) {
    return invalidate(*capture, cudaErrorStreamCaptureUnmatched,
                      "the capture began on another stream");
  }
  cuda_on_cpu::end_capture(*capture);
  if (capture->is_invalid) {
    return set_error(cudaErrorStreamCaptureInvalidated, "the capture was made void before");
  }
  if (!capture->unjoined.empty()) {
    return set_error(cudaErrorStreamCaptureUnjoined, "a stream was forked and not joined");
  }
  *graph = reinterpret_cast<cudaGraph_t>(new Graph{std::move(capture->nodes)});
  return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, cudaStreamCaptureStatus* status,
                                     unsigned long long* id, cudaGraph_t* graph,
                                     const cudaGraphNode_t** dependencies,
                                     const cudaGraphEdgeData** edges, size_t* count) {
  const Stream* const stream = find_stream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (stream->is_legacy && !cuda_on_cpu::blocking_captures().empty()) {
    return set_error(cudaErrorStreamCaptureImplicit,
                     "whether the legacy stream is captured, while one that it waits for is");
  }
  const Capture* const capture = stream->capture.get();
  *status = capture == nullptr    ? cudaStreamCaptureStatusNone
            : capture->is_invalid ? cudaStreamCaptureStatusInvalidated
                                  : cudaStreamCaptureStatusActive;
  if (id != nullptr) *id = capture == nullptr ? 0 : capture->id;
  if (graph != nullptr || dependencies != nullptr || edges != nullptr || count != nullptr) {
    return set_error(cudaErrorNotSupported, "the graph of a capture that has not ended");
  }
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  return cudaStreamGetCaptureInfo(stream, status, nullptr, nullptr, nullptr, nullptr, nullptr);
}

// ---- Graphs
// --------------------------------------------------------------------------------------

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  if (nodes != nullptr) return set_error(cudaErrorNotSupported, "the nodes of a graph one by one");
  *count = graph_of(graph)->nodes.size();
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph_of(graph);
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long) {
  *executable = reinterpret_cast<cudaGraphExec_t>(new Graph(*graph_of(graph)));
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph,
                                          unsigned long long flags) {
  return cudaGraphInstantiate(executable, graph, flags);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete graph_of(executable);
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  return cuda_on_cpu::submit(stream, "graph", [nodes = graph_of(executable)->nodes] {
    for (const Node& node : nodes) {
      if (const cudaError_t error = node.run()) return error;
    }
    return cudaSuccess;
  });
}

// Arguments may change, and kernels; what kinds of nodes follow each other may not.
cudaError_t cudaGraphExecUpdate(cudaGraphExec_t executable, cudaGraph_t graph,
                                cudaGraphExecUpdateResultInfo* info) {
  auto& old_nodes = graph_of(executable)->nodes;
  const auto& nodes = graph_of(graph)->nodes;
  *info = {};
  info->result = cudaGraphExecUpdateSuccess;
  const auto is_same = [](const Node& a, const Node& b) { return a.kind == b.kind; };
  if (old_nodes.size() != nodes.size()) {
    info->result = cudaGraphExecUpdateErrorTopologyChanged;
  } else if (!std::equal(nodes.begin(), nodes.end(), old_nodes.begin(), is_same)) {
    info->result = cudaGraphExecUpdateErrorNodeTypeChanged;
  }
  if (info->result != cudaGraphExecUpdateSuccess) {
    return set_error(cudaErrorGraphExecUpdateFailure, "the graph has other nodes");
  }
  old_nodes = nodes;
  return cudaSuccess;
}

}  // extern "C"
