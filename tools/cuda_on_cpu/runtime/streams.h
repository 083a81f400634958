// SPDX-License-Identifier: BSD-3-Clause
// Streams, and the captures that turn what is submitted to them into graphs. What is not captured
// runs before the call returns, so that streams need no order of their own.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <memory>
#include <set>
#include <string_view>
#include <thread>
#include <vector>

namespace cuda_on_cpu {

// Work with a copy of its arguments: a kernel, a copy, a memset, a GEMM, or a graph.
using Operation = std::function<cudaError_t()>;
struct Node {
  std::string_view kind;
  Operation run;
};

struct Stream;

// What the streams of a capture have been given, in the order of the calls, which is one that their
// events allow.
struct Capture {
  unsigned long long id = 0;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::thread::id thread;
  Stream* origin = nullptr;
  bool is_invalid = false;
  std::vector<Node> nodes;
  std::set<const Stream*> unjoined;  // forked off the origin, and not yet joined to it
};

struct Stream {
  bool is_legacy = false;
  bool is_blocking = true;  // waits for the legacy stream, and that one for it
  uint64_t submitted = 0;   // operations, while it is captured
  std::shared_ptr<Capture> capture;
};

// The stream of a handle; null, and the error set, where there is none.
Stream* find_stream(cudaStream_t handle);
Stream* create_stream(bool is_blocking);
void destroy_stream(Stream* stream);

// The captures of streams that wait for the legacy stream.
std::vector<Capture*> blocking_captures();
// Runs the operation, or records it where the stream is captured.
cudaError_t submit(cudaStream_t stream, std::string_view kind, const Operation& operation);
// What a call that may wait for the device, or change its memory, gives while a capture forbids it;
// the capture is void then.
cudaError_t check_unsafe(const char* what);
// The same of a call that waits for the whole device, whatever the thread allows itself.
cudaError_t check_waits(const char* what);

std::shared_ptr<Capture> begin_capture(Stream& stream, cudaStreamCaptureMode mode);
// Takes the streams out of the capture.
void end_capture(const Capture& capture);
cudaStreamCaptureMode& thread_capture_mode();

}  // namespace cuda_on_cpu
