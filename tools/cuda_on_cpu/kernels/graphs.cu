// SPDX-License-Identifier: BSD-3-Clause
// Launches on a stream, to be captured into graphs.
#include <cuda_runtime.h>

namespace {

__global__ void scale_kernel(float* x, float factor, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) x[i] *= factor;
}

}  // namespace

extern "C" int run_scale(float* x, float factor, int n, cudaStream_t stream) {
  scale_kernel<<<(n + 31) / 32, 32, 0, stream>>>(x, factor, n);
  return cudaGetLastError();
}

extern "C" int run_scale_cooperative(float* x, float factor, int n, cudaStream_t stream) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3((n + 31) / 32);
  config.blockDim = dim3(32);
  config.stream = stream;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, scale_kernel, x, factor, n);
}
