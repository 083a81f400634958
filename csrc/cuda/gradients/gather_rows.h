// SPDX-License-Identifier: BSD-3-Clause
// Copies of sequences that are fit to be multiplied: rows that take no part are zero, whatever
// the sequence holds there, since 0·NaN is NaN.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace lstm_fused::cuda {

struct GatherRows {
  int64_t steps = 0, batch = 0;
  int64_t row_bytes = 0;
  const void* rows = nullptr;  // (T, N) rows, `stride_bytes` apart
  int64_t stride_bytes = 0;
  // The copy's row (t, n) is that of `rows` at t + shift, shift being -1, 0 or 1; zero where
  // reset_mask (T, N) is set. With a shift, a row's first step, t = 0 for -1 and t = lengths[n] - 1
  // for 1, takes that of `first_rows` (N), of row_bytes each, instead.
  int shift = 0;
  const void* first_rows = nullptr;
  const int64_t* lengths = nullptr;     // (N); null: T each
  const uint8_t* reset_mask = nullptr;  // or null
  void* out = nullptr;                  // (T, N, row_bytes)
};

void gather_rows(const GatherRows& gather, cudaStream_t stream);

}  // namespace lstm_fused::cuda
