// SPDX-License-Identifier: BSD-3-Clause
// Launch machinery, and host code as a product has it: <<<>>>, templates, cooperative launches.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

namespace {

template <int kAdd>
__global__ void shift_kernel(const float* a, float* b, int n) {
  extern __shared__ float s[];
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  s[threadIdx.x] = i < n ? a[i] : 0;
  __syncthreads();
  if (i < n) b[i] = s[threadIdx.x ^ 1] + kAdd;
}

// Every block reads its neighbour's value of the round before.
__global__ void ring_kernel(float* b, int n, int rounds) {
  auto grid = cooperative_groups::this_grid();
  for (int r = 0; r < rounds; ++r) {
    const float v = b[(r & 1) * n + (blockIdx.x + 1) % n];
    if (threadIdx.x == 0) b[(~r & 1) * n + blockIdx.x] = v + 1;
    grid.sync();
  }
}

// A persistent kernel with a grid barrier of its own: all blocks must be resident.
__global__ void spin_kernel(unsigned* count, unsigned rounds) {
  for (unsigned r = 1; r <= rounds; ++r) {
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();
      atomicAdd(count, 1u);
      while (*(volatile unsigned*)count < r * gridDim.x) {
      }
      __threadfence();
    }
    __syncthreads();
  }
}

__global__ void lanes_kernel(unsigned* out, int rounds) {
  unsigned value = threadIdx.x;
  for (int r = 0; r < rounds; ++r) value = __shfl_xor_sync(~0u, value, r & 31) + 1;
  out[blockIdx.x * blockDim.x + threadIdx.x] = value;
}

__global__ void loop_kernel(const float* a, float* out, int n) {
  float sum = 0;
#pragma unroll 1
  for (int j = 0; j < n; ++j) sum = fmaf(a[(threadIdx.x + j) & 1023], 1.5f, sum * 0.5f);
  out[threadIdx.x] = sum;
}

}  // namespace

extern "C" int run_shift(const float* a, float* b, int n, int shared_bytes, int opt_in) {
  if (opt_in) {
    const cudaError_t error = cudaFuncSetAttribute(
        shift_kernel<3>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (error) return error;
  }
  shift_kernel<3><<<(n + 127) / 128, 128, shared_bytes>>>(a, b, n);
  return cudaGetLastError();
}

extern "C" int run_ring(float* b, int n, int rounds) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(n);
  config.blockDim = dim3(64);
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, ring_kernel, b, n, rounds);
}

extern "C" int run_spin(unsigned* count, int blocks, int threads, int rounds) {
  spin_kernel<<<blocks, threads>>>(count, rounds);
  return cudaGetLastError();
}

extern "C" int run_lanes(unsigned* out, int blocks, int threads, int rounds) {
  lanes_kernel<<<blocks, threads>>>(out, rounds);
  return cudaGetLastError();
}

extern "C" int run_loop(const float* a, float* out, int n) {
  loop_kernel<<<1, 32>>>(a, out, n);
  return cudaGetLastError();
}

extern "C" int occupancy(int threads, int shared_bytes) {
  int blocks = -1;
  const cudaError_t error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, shift_kernel<3>,
                                                                          threads, shared_bytes);
  return error ? -static_cast<int>(error) : blocks;
}
