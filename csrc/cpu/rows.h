// SPDX-License-Identifier: BSD-3-Clause
// The rows of data in step order, which the gradients of weights sum over: where they stand in
// sequences (padded or packed), and which samples they are of.
#pragma once

#include <cstdint>
#include <vector>

#include "common/lstm.h"

namespace lstm_fused::cpu {

using RowPointers = std::vector<const void*>;  // (M)

// Pointers at the rows of a matrix (M, row) of row_bytes each.
RowPointers matrix_rows(const void* matrix, int64_t rows, int64_t row_bytes);

// The data rows of sequence (T, N, row) or (M, row).
RowPointers data_rows(const SequenceLayout& layout, int64_t batch, const void* sequence,
                      int64_t row_bytes);

// Where a direction's h_prev stands, which its recurrent GEMM multiplies at each step: y of the
// step before, h_0 at the first one, or zero after a reset.
struct HPrevSource {
  const void* y = nullptr;  // rows of y_stride_bytes, this direction's column first
  int64_t y_stride_bytes = 0;
  const void* h_0 = nullptr;  // (N, row)
  int64_t row_bytes = 0;
  const uint8_t* reset_mask = nullptr;  // (T, N) or null
  bool reverse = false;
  const void* zeros = nullptr;  // a row of them, with reset_mask
};
RowPointers h_prev_rows(const SequenceLayout& layout, int64_t batch, const HPrevSource& states);
// h_prev of a direction of a forward. zeros: a row of them.
RowPointers h_prev_rows(const LstmGatesArgs& forward, int direction, const void* zeros);

// The data rows of each of B samples, batch row n being of sample n % B.
struct SampleRows {
  std::vector<int64_t> rows;   // (M) of one sample after those of another, in step order
  std::vector<int64_t> first;  // (B + 1) where the rows of each begin
};
SampleRows sample_rows(const SequenceLayout& layout, int64_t samples);

}  // namespace lstm_fused::cpu
