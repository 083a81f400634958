// SPDX-License-Identifier: BSD-3-Clause
#include "streams.h"

#include <map>
#include <string>

#include "device.h"

namespace cuda_on_cpu {

namespace {

struct Streams {
  Stream legacy, of_thread;
  std::map<const void*, std::unique_ptr<Stream>> created;

  Streams() { legacy.is_legacy = true; }
};

Streams& streams() {
  static Streams* const the_streams = new Streams;
  return *the_streams;
}

template <class F>
void for_each_stream(F f) {
  f(streams().legacy);
  f(streams().of_thread);
  for (auto& [handle, stream] : streams().created) f(*stream);
}

cudaError_t forbid(cudaError_t error, Capture& capture, const std::string& what) {
  capture.is_invalid = true;
  return set_error(error, what);
}

}  // namespace

Stream* find_stream(cudaStream_t handle) {
  if (handle == nullptr || handle == cudaStreamLegacy) return &streams().legacy;
  if (handle == cudaStreamPerThread) return &streams().of_thread;
  const auto found = streams().created.find(handle);
  if (found != streams().created.end()) return found->second.get();
  set_error(cudaErrorInvalidResourceHandle, "a stream that does not exist");
  return nullptr;
}

Stream* create_stream(bool is_blocking) {
  auto stream = std::make_unique<Stream>();
  Stream* const created = stream.get();
  created->is_blocking = is_blocking;
  streams().created.emplace(created, std::move(stream));
  return created;
}

void destroy_stream(Stream* stream) {
  if (stream->capture) stream->capture->is_invalid = true;
  streams().created.erase(stream);
}

std::vector<Capture*> blocking_captures() {
  std::vector<Capture*> captures;
  for_each_stream([&](const Stream& stream) {
    if (stream.capture && stream.is_blocking) captures.push_back(stream.capture.get());
  });
  return captures;
}

cudaError_t submit(cudaStream_t handle, std::string_view kind, const Operation& operation) {
  if (device().is_sticky) return device().error;
  Stream* const stream = find_stream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (stream->is_legacy) {
    cudaError_t error = cudaSuccess;
    for (Capture* capture : blocking_captures()) {
      error = forbid(
          cudaErrorStreamCaptureImplicit, *capture,
          "a " + std::string(kind) + " of the legacy stream, for which a captured one would wait");
    }
    if (error != cudaSuccess) return error;
  }
  Capture* const capture = stream->capture.get();
  if (capture == nullptr) return operation();
  if (capture->is_invalid) {
    return set_error(cudaErrorStreamCaptureInvalidated, "the capture was made void before");
  }
  ++stream->submitted;
  if (stream != capture->origin) capture->unjoined.insert(stream);
  capture->nodes.push_back({kind, operation});
  return cudaSuccess;
}

cudaStreamCaptureMode& thread_capture_mode() {
  thread_local cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  return mode;
}

cudaError_t check_unsafe(const char* what) {
  const cudaStreamCaptureMode own = thread_capture_mode();
  cudaError_t error = cudaSuccess;
  for_each_stream([&](const Stream& stream) {
    if (!stream.capture) return;
    Capture& capture = *stream.capture;
    if (own == cudaStreamCaptureModeRelaxed || capture.mode == cudaStreamCaptureModeRelaxed) return;
    const bool is_own = capture.thread == std::this_thread::get_id();
    const bool are_global =
        own == cudaStreamCaptureModeGlobal && capture.mode == cudaStreamCaptureModeGlobal;
    if (!is_own && !are_global) return;
    error = forbid(cudaErrorStreamCaptureUnsupported, capture,
                   std::string(what) + " while a stream is captured");
  });
  return error;
}

cudaError_t check_waits(const char* what) {
  cudaError_t error = cudaSuccess;
  for_each_stream([&](const Stream& stream) {
    if (!stream.capture) return;
    error = forbid(cudaErrorStreamCaptureUnsupported, *stream.capture,
                   std::string(what) + " while a stream is captured");
  });
  return error;
}

std::shared_ptr<Capture> begin_capture(Stream& stream, cudaStreamCaptureMode mode) {
  static unsigned long long count = 0;
  auto capture = std::make_shared<Capture>();
  capture->id = ++count;
  capture->mode = mode;
  capture->thread = std::this_thread::get_id();
  capture->origin = &stream;
  stream.capture = capture;
  return capture;
}

void end_capture(const Capture& capture) {
  for_each_stream([&](Stream& stream) {
    if (stream.capture.get() == &capture) stream.capture = nullptr;
  });
}

}  // namespace cuda_on_cpu
