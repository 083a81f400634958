// SPDX-License-Identifier: BSD-3-Clause
// Sums over the features of a row, which a block takes for itself: layer normalisation needs them.
#pragma once

#include <cstdint>

#include "common/integers.h"
#include "cuda/device/ptx.cuh"

namespace lstm_fused::cuda {

constexpr int kWarpThreads = 32;
constexpr int kNormWarps = 8;
constexpr int kNormThreads = kNormWarps * kWarpThreads;
// Blocks that an SM has registers for. NOTE: unasked, ptxas makes room for four and spills.
constexpr int kNormBlocks = 2;

// Threads of a block for rows of so many units: what order a row is summed in depends on this
// alone.
inline int norm_threads(int64_t units) {
  const int64_t whole = round_up(units, kWarpThreads);
  return static_cast<int>(whole < kNormThreads ? whole : kNormThreads);
}

// Replaces each of the sums by that over all threads of the block, who must all call. `slots`:
// shared memory that no other sum of the kernel has, so that one barrier is enough.
template <int kSums, typename A>
__device__ __forceinline__ void sum_over_block(A (&sums)[kSums], A (&slots)[kNormWarps][kSums]) {
  const int warp = threadIdx.x / kWarpThreads, warps = blockDim.x / kWarpThreads;
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
#pragma unroll
    for (int lanes = kWarpThreads / 2; lanes > 0; lanes /= 2) {
      sums[i] += __shfl_xor_sync(0xffffffffu, sums[i], lanes);
    }
    if (threadIdx.x % kWarpThreads == 0) slots[warp][i] = sums[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    sums[i] = slots[0][i];
    for (int other = 1; other < warps; ++other) sums[i] += slots[other][i];
  }
}

}  // namespace lstm_fused::cuda
