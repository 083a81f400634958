// SPDX-License-Identifier: BSD-3-Clause
// Latencies of loads, by a chain of addresses; and what a fence costs its thread.
#include <numeric>
#include <random>

#include "micro.h"

namespace lstm_fused::micro {
namespace {

constexpr int kUnrolled = 32, kLoops = 64;
constexpr int kOperations = kUnrolled * kLoops;
constexpr size_t kLineBytes = 128;

struct LoadL1 {
  static __device__ __forceinline__ void apply(uint64_t& address) {
    asm volatile("ld.global.ca.u64 %0, [%0];" : "+l"(address)::"memory");
  }
};
struct LoadL2 {
  static __device__ __forceinline__ void apply(uint64_t& address) {
    asm volatile("ld.global.cg.u64 %0, [%0];" : "+l"(address)::"memory");
  }
};
struct LoadRelaxed {
  static __device__ __forceinline__ void apply(uint64_t& address) {
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%0];" : "+l"(address)::"memory");
  }
};
struct LoadAcquire {
  static __device__ __forceinline__ void apply(uint64_t& address) {
    asm volatile("ld.acquire.gpu.global.u64 %0, [%0];" : "+l"(address)::"memory");
  }
};

// Two passes over the same lines, of which the second finds them in the cache.
template <typename Load>
__global__ void chase_kernel(uint64_t first, Result* result, uint64_t* sink) {
  long long cycles = 0;
  uint64_t address = first;
#pragma unroll 1
  for (int pass = 0; pass < 2; ++pass) {
    address = first;
    const long long start = clock64();
#pragma unroll 1
    for (int i = 0; i < kLoops; ++i) {
#pragma unroll
      for (int k = 0; k < kUnrolled; ++k) Load::apply(address);
    }
    *sink = address;  // the clock is read when it is there
    cycles = clock64() - start;
  }
  result->cycles = cycles;
}

// A ring through so many lines in a random order, each of which holds the next one's address.
void write_ring(const Bench& bench, int lines) {
  std::vector<int> order(lines);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin() + 1, order.end(), std::mt19937(1));
  std::vector<uint64_t> words(lines * kLineBytes / sizeof(uint64_t));
  for (int i = 0; i < lines; ++i) {
    words[order[i] * kLineBytes / sizeof(uint64_t)] =
        reinterpret_cast<uint64_t>(bench.memory) + order[(i + 1) % lines] * kLineBytes;
  }
  check(cudaMemcpy(bench.memory, words.data(), words.size() * sizeof(uint64_t),
                   cudaMemcpyHostToDevice),
        "cudaMemcpy");
}

template <typename Load>
void measure_chase(Bench& bench, const char* name, const char* what, int lines) {
  const auto first = reinterpret_cast<uint64_t>(bench.memory);
  auto* sink = reinterpret_cast<uint64_t*>(bench.memory + kMemoryBytes) - 1;
  measure(bench, name, what, kOperations, [&] {
    write_ring(bench, lines);
    chase_kernel<Load><<<1, 1>>>(first, bench.result, sink);
  });
}

constexpr int kWords = 1024;

// A thread's words are the shared addresses of others, of 4 bytes, or in vectors of 16.
template <bool kVector>
__global__ void shared_chase_kernel(Result* result, uint32_t* sink) {
  __shared__ uint4 words[kWords];
  const auto base = static_cast<uint32_t>(__cvta_generic_to_shared(words));
  for (int i = threadIdx.x; i < kWords; i += blockDim.x) {
    const uint32_t next = base + (i * 7 + 3) % kWords * sizeof(uint4);
    words[i] = make_uint4(next, next, next, next);
  }
  __syncthreads();
  long long cycles = 0;
  uint32_t address = base + threadIdx.x * sizeof(uint4), others = 0;
#pragma unroll 1
  for (int pass = 0; pass < 2; ++pass) {
    const long long start = clock64();
#pragma unroll 1
    for (int i = 0; i < kLoops; ++i) {
#pragma unroll
      for (int k = 0; k < kUnrolled; ++k) {
        if constexpr (kVector) {
          uint32_t y, z, w;
          asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%0];"
                       : "+r"(address), "=r"(y), "=r"(z), "=r"(w)::"memory");
          others ^= y ^ z ^ w;  // NOTE: ptxas narrows a load of which the rest is not used
        } else {
          asm volatile("ld.shared.u32 %0, [%0];" : "+r"(address)::"memory");
        }
      }
    }
    sink[threadIdx.x] = address + others;
    cycles = clock64() - start;
  }
  if (threadIdx.x == 0) result->cycles = cycles;
}

// A store of 16 bytes by each thread, a barrier, and a fence by the first thread, whose store
// behind it waits for the fence.
__global__ void fence_kernel(uint4* data, uint32_t* flag, bool stores, bool fences,
                             Result* result) {
  long long cycles = 0;
#pragma unroll 1
  for (int pass = 0; pass < 2; ++pass) {
    const long long start = clock64();
    for (uint32_t i = 0; i < kOperations; ++i) {
      if (stores) {
        asm volatile("st.global.v4.u32 [%0], {%1, %1, %1, %1};" ::"l"(data + threadIdx.x), "r"(i)
                     : "memory");
      }
      __syncthreads();
      if (threadIdx.x == 0) {
        if (fences) fence_gpu();
        asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(i) : "memory");
      }
    }
    cycles = clock64() - start;
  }
  if (threadIdx.x == 0) result->cycles = cycles;
}

}  // namespace

void measure_memory(Bench& bench) {
  constexpr int kL1Lines = 64, kL2Lines = 8192;
  measure_chase<LoadL1>(bench, "l1_load_latency", "ld.global.ca of a line in L1", kL1Lines);
  measure_chase<LoadL2>(bench, "l2_load_latency", "ld.global.cg of a line in L2", kL2Lines);
  measure_chase<LoadRelaxed>(bench, "l2_load_relaxed_latency", "ld.relaxed.gpu of it", kL2Lines);
  measure_chase<LoadAcquire>(bench, "l2_load_acquire_latency", "ld.acquire.gpu of it", kL2Lines);
  auto* sink = reinterpret_cast<uint32_t*>(bench.memory);
  measure(bench, "shared_load_latency", "ld.shared.u32, one thread", kOperations,
          [&] { shared_chase_kernel<false><<<1, 1>>>(bench.result, sink); });
  measure(bench, "shared_load_16_bytes_latency", "ld.shared.v4.u32, one warp", kOperations,
          [&] { shared_chase_kernel<true><<<1, 32>>>(bench.result, sink); });

  auto* data = reinterpret_cast<uint4*>(bench.memory);
  auto* flag = reinterpret_cast<uint32_t*>(bench.memory + kMemoryBytes / 2);
  const auto measure_fence = [&](const char* name, const char* what, int threads, bool stores,
                                 bool fences) {
    measure(bench, name, what, kOperations,
            [=] { fence_kernel<<<1, threads>>>(data, flag, stores, fences, bench.result); });
  };
  measure_fence("fence_idle", "fence.acq_rel.gpu with nothing but a flag to wait for, one warp", 32,
                false, true);
  measure_fence("fence_after_512_bytes", "store, bar.sync, fence.acq_rel.gpu, flag: one warp", 32,
                true, true);
  measure_fence("fence_after_4096_bytes", "the same of 8 warps", 256, true, true);
  measure_fence("no_fence_after_4096_bytes", "the same without the fence", 256, true, false);
}

}  // namespace lstm_fused::micro
