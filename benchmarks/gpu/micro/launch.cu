// SPDX-License-Identifier: BSD-3-Clause
// From a kernel's start to the next one's, for kernels that do nothing: in a stream, as the host
// enqueues them, and in a CUDA graph.
#include <algorithm>

#include "micro.h"

namespace lstm_fused::micro {
namespace {

constexpr int kKernels = 500, kRuns = 9;

__global__ void empty_kernel() {}

// Microseconds of a kernel, the median of some runs.
template <typename Run>
double microseconds(const Run& run, cudaStream_t stream) {
  cudaEvent_t start, stop;
  check(cudaEventCreate(&start), "cudaEventCreate");
  check(cudaEventCreate(&stop), "cudaEventCreate");
  std::vector<float> found;
  for (int i = 0; i < kRuns; ++i) {
    check(cudaEventRecord(start, stream), "cudaEventRecord");
    run();
    check(cudaEventRecord(stop, stream), "cudaEventRecord");
    check(cudaEventSynchronize(stop), "cudaEventSynchronize");
    found.push_back(0);
    check(cudaEventElapsedTime(&found.back(), start, stop), "cudaEventElapsedTime");
  }
  check(cudaEventDestroy(start), "cudaEventDestroy");
  check(cudaEventDestroy(stop), "cudaEventDestroy");
  std::sort(found.begin(), found.end());
  return 1000.0 * found[kRuns / 2] / kKernels;
}

}  // namespace

void measure_launches(Bench& bench) {
  const int blocks = bench.device.multiProcessorCount;
  cudaStream_t stream;
  check(cudaStreamCreate(&stream), "cudaStreamCreate");
  const auto enqueue = [&] {
    for (int i = 0; i < kKernels; ++i) empty_kernel<<<blocks, 128, 0, stream>>>();
    check(cudaGetLastError(), "empty_kernel");
  };
  print_value("kernel_in_stream", "a kernel that does nothing, one on every SM", "us",
              microseconds(enqueue, stream));

  cudaGraph_t graph;
  cudaGraphExec_t executable;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  enqueue();
  check(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
  check(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
  const auto replay = [&] { check(cudaGraphLaunch(executable, stream), "cudaGraphLaunch"); };
  print_value("kernel_in_graph", "the same in a graph", "us", microseconds(replay, stream));
  check(cudaGraphExecDestroy(executable), "cudaGraphExecDestroy");
  check(cudaGraphDestroy(graph), "cudaGraphDestroy");
  check(cudaStreamDestroy(stream), "cudaStreamDestroy");
}

}  // namespace lstm_fused::micro
