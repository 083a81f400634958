// SPDX-License-Identifier: BSD-3-Clause
// Latencies of instructions: chains in which each takes what the one before it gave, by one warp;
// and the rate of mma.sync, by chains that do not depend on each other.
#include "micro.h"

namespace lstm_fused::micro {
namespace {

constexpr int kUnrolled = 32, kLoops = 128;
constexpr int kOperations = kUnrolled * kLoops;

// The known one, which shows that the others are right: 4 cycles since Volta.
struct Ffma {
  static __device__ __forceinline__ void apply(float& x) {
    asm volatile("fma.rn.f32 %0, %0, %0, %0;" : "+f"(x));
  }
};
struct Ex2 {
  static __device__ __forceinline__ void apply(float& x) {
    asm volatile("ex2.approx.ftz.f32 %0, %0;" : "+f"(x));
  }
};
struct Rcp {
  static __device__ __forceinline__ void apply(float& x) {
    asm volatile("rcp.approx.ftz.f32 %0, %0;" : "+f"(x));
  }
};
struct Tanh {
  static __device__ __forceinline__ void apply(float& x) {
    asm volatile("tanh.approx.f32 %0, %0;" : "+f"(x));
  }
};
// What a warp's lanes pass on to each other.
struct Shuffle {
  static __device__ __forceinline__ void apply(float& x) {
    asm volatile("shfl.sync.bfly.b32 %0, %0, 1, 0x1f, 0xffffffff;" : "+f"(x));
  }
};

// Two passes, of which the second finds its instructions in the cache.
template <typename Operation>
__global__ void chain_kernel(float x, Result* result, float* sink) {
  // NOTE: ptxas leaves out shuffles of what it knows to be the same in all lanes.
  x += static_cast<float>(threadIdx.x);
  long long cycles = 0;
#pragma unroll 1
  for (int pass = 0; pass < 2; ++pass) {
    const long long start = clock64();
#pragma unroll 1
    for (int i = 0; i < kLoops; ++i) {
#pragma unroll
      for (int k = 0; k < kUnrolled; ++k) Operation::apply(x);
    }
    cycles = clock64() - start;
  }
  sink[threadIdx.x] = x;
  if (threadIdx.x == 0) result->cycles = cycles;
}

template <typename Operation>
void measure_chain(Bench& bench, const char* name, const char* what) {
  auto* sink = reinterpret_cast<float*>(bench.memory);
  measure(bench, name, what, kOperations,
          [&] { chain_kernel<Operation><<<1, 32>>>(0.5F, bench.result, sink); });
}

struct MmaF16 {
  static __device__ __forceinline__ void apply(float (&d)[4], uint32_t a, uint32_t b) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %4, %4, %4}, {%5, %5}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a), "r"(b));
  }
};
struct MmaBf16 {
  static __device__ __forceinline__ void apply(float (&d)[4], uint32_t a, uint32_t b) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %4, %4, %4}, {%5, %5}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a), "r"(b));
  }
};
struct MmaTf32 {
  static __device__ __forceinline__ void apply(float (&d)[4], uint32_t a, uint32_t b) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %4, %4, %4}, {%5, %5}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a), "r"(b));
  }
};

// Each warp has `kChains` accumulators, which take turns. Operands of 1.0 in 16 bits.
template <typename Mma, int kChains>
__global__ void mma_kernel(uint32_t ones, Result* result, float* sink) {
  float d[kChains][4] = {};
  long long cycles = 0;
#pragma unroll 1
  for (int pass = 0; pass < 2; ++pass) {
    __syncthreads();
    const long long start = clock64();
#pragma unroll 1
    for (int i = 0; i < kLoops; ++i) {
#pragma unroll
      for (int k = 0; k < kUnrolled; ++k) Mma::apply(d[k % kChains], ones, ones);
    }
    cycles = clock64() - start;
  }
  float sum = 0;
#pragma unroll
  for (int k = 0; k < kChains; ++k) sum += d[k][0] + d[k][1] + d[k][2] + d[k][3];
  sink[threadIdx.x] = sum;
  if (threadIdx.x == 0) result->cycles = cycles;
}

template <typename Mma>
void measure_mma(Bench& bench, const std::string& name) {
  constexpr uint32_t kOnes = 0x3c003c00;
  auto* sink = reinterpret_cast<float*>(bench.memory);
  measure(bench, name + "_latency", "an mma.sync whose accumulator the one before it made",
          kOperations, [&] { mma_kernel<Mma, 1><<<1, 32>>>(kOnes, bench.result, sink); });
  measure(bench, name + "_issue", "a scheduler's mma.sync: one warp, 8 accumulators", kOperations,
          [&] { mma_kernel<Mma, 8><<<1, 128>>>(kOnes, bench.result, sink); });
  measure(bench, name + "_issue_2_warps", "a scheduler's mma.sync: two warps, 8 accumulators each",
          2 * kOperations, [&] { mma_kernel<Mma, 8><<<1, 256>>>(kOnes, bench.result, sink); });
}

__global__ void block_barrier_kernel(Result* result) {
  long long cycles = 0;
#pragma unroll 1
  for (int pass = 0; pass < 2; ++pass) {
    const long long start = clock64();
#pragma unroll 1
    for (int i = 0; i < kLoops; ++i) {
#pragma unroll
      for (int k = 0; k < kUnrolled; ++k) asm volatile("bar.sync 0;" ::: "memory");
    }
    cycles = clock64() - start;
  }
  if (threadIdx.x == 0) result->cycles = cycles;
}

}  // namespace

void measure_arithmetic(Bench& bench) {
  measure_chain<Ffma>(bench, "ffma_latency", "fma.rn.f32");
  measure_chain<Ex2>(bench, "ex2_latency", "ex2.approx.ftz.f32");
  measure_chain<Rcp>(bench, "rcp_latency", "rcp.approx.ftz.f32");
  measure_chain<Tanh>(bench, "tanh_latency", "tanh.approx.f32");
  measure_chain<Shuffle>(bench, "shuffle_latency", "shfl.sync.bfly");
  measure_mma<MmaF16>(bench, "mma_f16");
  measure_mma<MmaBf16>(bench, "mma_bf16");
  measure_mma<MmaTf32>(bench, "mma_tf32");
  measure(bench, "block_barrier", "bar.sync of 8 warps", kOperations,
          [&] { block_barrier_kernel<<<1, 256>>>(bench.result); });
}

}  // namespace lstm_fused::micro
