// SPDX-License-Identifier: BSD-3-Clause
// Kernels without races, of which every synchronising instruction is needed: the tests take each
// out in turn.
#include <cuda_pipeline.h>
#include <cuda_runtime.h>

namespace {

__device__ unsigned load_acquire(const unsigned* at) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
  return value;
}
__device__ void store_release(unsigned* at, unsigned value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(at), "r"(value) : "memory");
}
__device__ void add_release(unsigned* at, unsigned value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(at), "r"(value) : "memory");
}

// Reverses a block's values through shared memory, again and again.
__global__ void reverse_kernel(float* x, int rounds) {
  __shared__ float s[128];
#pragma unroll 1
  for (int r = 0; r < rounds; ++r) {
    s[threadIdx.x] = x[blockIdx.x * 128 + threadIdx.x];
    __syncthreads();
    x[blockIdx.x * 128 + threadIdx.x] = s[127 - threadIdx.x] + 1;
    __syncthreads();
  }
}

// Block b publishes a vector to block b + 1 by a flag.
__global__ void chain_kernel(float* x, unsigned* flags) {
  const int b = blockIdx.x, t = threadIdx.x;
  if (b > 0) {
    if (t == 0) {
      while (load_acquire(&flags[b]) == 0) {
      }
    }
    __syncthreads();
  }
  x[(b + 1) * 64 + t] = x[b * 64 + (t + 1) % 64] + 1;
  __syncthreads();
  if (t == 0) store_release(&flags[b + 1], 1);
}

// Block b publishes a vector to block b + 1 by __threadfence and a volatile flag.
__global__ void fence_kernel(float* x, unsigned* flags) {
  const int b = blockIdx.x, t = threadIdx.x;
  if (b > 0) {
    if (t == 0) {
      while (*(volatile unsigned*)&flags[b] == 0) {
      }
      __threadfence();
    }
    __syncthreads();
  }
  x[(b + 1) * 64 + t] = x[b * 64 + (t + 1) % 64] + 1;
  __syncthreads();
  if (t == 0) {
    __threadfence();
    atomicAdd(&flags[b + 1], 1u);
  }
}

// A recurrence over blocks: each step reads what all blocks wrote in the one before. Each warp
// releases what it wrote, and waits for all.
__global__ void step_kernel(float* x, unsigned* count, int steps) {
  const int n = gridDim.x * blockDim.x, i = blockIdx.x * blockDim.x + threadIdx.x;
  const unsigned warps = n / 32;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const float* from = x + step % 2 * n;
    x[(step + 1) % 2 * n + i] = from[(i + 32) % n] + from[(i + n - 32) % n];
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      add_release(count, 1);
      while (load_acquire(count) < warps * (step + 1)) {
      }
    }
    __syncwarp();
  }
}

// A block-scope fence does not reach another block.
template <bool kIsNarrow>
__global__ void scope_kernel(float* x, unsigned* flag) {
  if (threadIdx.x != 0) return;
  if (blockIdx.x == 0) {
    x[0] = 1;
    if (kIsNarrow) {
      __threadfence_block();
    } else {
      __threadfence();
    }
    *(volatile unsigned*)flag = 1;
  } else {
    while (*(volatile unsigned*)flag == 0) {
    }
    __threadfence();
    x[1] = x[0];
  }
}

// Copies through shared memory with cp.async, two stages in flight.
__global__ void copy_kernel(const float4* x, float4* y, int stages) {
  __shared__ float4 s[2][64];
  const int t = threadIdx.x;
  __pipeline_memcpy_async(&s[0][t], &x[t], 16);
  __pipeline_commit();
#pragma unroll 1
  for (int i = 0; i < stages; ++i) {
    if (i + 1 < stages) __pipeline_memcpy_async(&s[(i + 1) % 2][t], &x[(i + 1) * 64 + t], 16);
    __pipeline_commit();
    __pipeline_wait_prior(1);
    __syncthreads();
    y[i * 64 + t] = s[i % 2][63 - t];
    __syncthreads();
  }
}

// Producers and consumers of one block, by named barriers.
__global__ void named_kernel(float* y, int rounds) {
  __shared__ float s[32];
  const int lane = threadIdx.x & 31;
#pragma unroll 1
  for (int r = 0; r < rounds; ++r) {
    if (threadIdx.x < 32) {
      asm volatile("bar.sync 2, 64;" ::: "memory");
      s[lane] = static_cast<float>(r + lane);
      asm volatile("bar.arrive 1, 64;" ::: "memory");
    } else {
      asm volatile("bar.arrive 2, 64;" ::: "memory");
      asm volatile("bar.sync 1, 64;" ::: "memory");
      y[r * 32 + lane] = s[31 - lane];
    }
  }
}

// Lanes of a warp exchange by shared memory.
__global__ void warp_kernel(float* y) {
  __shared__ float s[32];
  s[threadIdx.x] = static_cast<float>(threadIdx.x);
  __syncwarp();
  y[threadIdx.x] = s[31 - threadIdx.x];
}

// Neighbouring bytes are different memory, though nothing orders the threads.
__global__ void bytes_kernel(unsigned char* x) {
  x[threadIdx.x] = static_cast<unsigned char>(threadIdx.x);
  x[threadIdx.x] += 1;
}

}  // namespace

extern "C" int run_bytes(unsigned char* x, unsigned*) {
  bytes_kernel<<<1, 64>>>(x);
  return cudaGetLastError();
}
extern "C" int run_reverse(float* x, unsigned*) {
  reverse_kernel<<<2, 128>>>(x, 3);
  return cudaGetLastError();
}
extern "C" int run_chain(float* x, unsigned* flags) {
  chain_kernel<<<4, 64>>>(x, flags);
  return cudaGetLastError();
}
extern "C" int run_fence(float* x, unsigned* flags) {
  fence_kernel<<<4, 64>>>(x, flags);
  return cudaGetLastError();
}
extern "C" int run_step(float* x, unsigned* flags) {
  step_kernel<<<3, 64>>>(x, flags, 4);
  return cudaGetLastError();
}
extern "C" int run_scope(float* x, unsigned* flags) {
  scope_kernel<false><<<2, 32>>>(x, flags);
  return cudaGetLastError();
}
extern "C" int run_narrow(float* x, unsigned* flags) {
  scope_kernel<true><<<2, 32>>>(x, flags);
  return cudaGetLastError();
}
extern "C" int run_copy(float* x, unsigned*) {
  auto* at = reinterpret_cast<float4*>(x);
  copy_kernel<<<1, 64>>>(at, at + 256, 4);
  return cudaGetLastError();
}
extern "C" int run_named(float* x, unsigned*) {
  named_kernel<<<1, 64>>>(x, 3);
  return cudaGetLastError();
}
extern "C" int run_warp(float* x, unsigned*) {
  warp_kernel<<<1, 32>>>(x);
  return cudaGetLastError();
}
