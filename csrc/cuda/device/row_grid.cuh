// SPDX-License-Identifier: BSD-3-Clause
// Launches over rows of N and columns of features: a thread for each kWidth neighbours of a row.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

#include "common/error.h"
#include "common/integers.h"

namespace lstm_fused::cuda {

// Four warps a block: small batches, which need the speed most, spread over more SMs than with
// larger blocks, and no kernel here needs more warps to hide its latency.
constexpr int kRowThreads = 128;
static_assert(kRowThreads % 32 == 0, "whole warps");

// Elements that a thread moves at once: 16 bytes of accumulators, so 8 of a 16-bit storage type.
// Twice as many would need twice the registers, and leave half the threads to small batches.
template <typename Accumulator>
constexpr int kVectorWidth = 16 / sizeof(Accumulator);
static_assert(kVectorWidth<float> == 4 && kVectorWidth<double> == 2, "one 16-byte access");

struct RowGrid {
  dim3 grid, block;
  bool empty = false;
};

// `layers` become blockIdx.z. NOTE: rows on x, the one dimension of a grid that reaches 2^31.
inline RowGrid row_grid(int64_t rows, int64_t columns, int width, int layers) {
  RowGrid launch;
  launch.empty = rows == 0 || columns == 0 || layers == 0;
  if (launch.empty) return launch;
  const int64_t packs = ceil_div(columns, width);
  const int64_t x = std::min<int64_t>(packs, kRowThreads);
  const int64_t y = std::min<int64_t>(kRowThreads / x, rows);
  const int64_t row_blocks = ceil_div(rows, y), column_blocks = ceil_div(packs, x);
  LSTM_CHECK(row_blocks < int64_t{1} << 31 && column_blocks < 1 << 16,
             "a CUDA grid has room for 2^31 x 65535 blocks, got ", row_blocks, " x ",
             column_blocks);
  launch.block = dim3(static_cast<unsigned>(x), static_cast<unsigned>(y));
  launch.grid = dim3(static_cast<unsigned>(row_blocks), static_cast<unsigned>(column_blocks),
                     static_cast<unsigned>(layers));
  return launch;
}

inline bool is_aligned(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes) == 0;
}

#if defined(__CUDACC__)
__device__ __forceinline__ int64_t grid_row() {
  return int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
}
template <int kWidth>
__device__ __forceinline__ int64_t grid_column() {
  return (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * kWidth;
}

// Steps of row n: lengths[n], clamped to [0, steps], or all of them.
__device__ __forceinline__ int64_t row_length(const int64_t* lengths, int64_t n, int64_t steps) {
  if (lengths == nullptr) return steps;
  const int64_t length = lengths[n];
  return length < 0 ? 0 : length > steps ? steps : length;
}

// Whether step t of row n is reset: its h_prev and c_prev are zero.
__device__ __forceinline__ bool is_reset(const uint8_t* reset_mask, int64_t t, int64_t n,
                                         int64_t batch) {
  return reset_mask != nullptr && reset_mask[t * batch + n] != 0;
}
#endif

}  // namespace lstm_fused::cuda
