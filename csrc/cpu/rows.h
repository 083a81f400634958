// SPDX-License-Identifier: BSD-3-Clause
// Moves rows between the layout of sequences (padded or packed) and M rows of data in step order,
// which is what the weight gradients' GEMMs take.
#pragma once

#include <cstdint>

#include "common/lstm.h"
#include "cpu/team.h"

namespace lstm_fused::cpu {

// out (M, row) = the data rows of sequence (T, N, row) or (M, row). row_bytes: of a row.
void gather_data_rows(const SequenceLayout& layout, int64_t batch, const void* sequence,
                      int64_t row_bytes, void* out, const Parallel& parallel);

// The inverse: the data rows of sequence = the rows of data (M, row). Other rows are left alone.
void scatter_data_rows(const SequenceLayout& layout, int64_t batch, const void* data,
                       int64_t row_bytes, void* sequence, const Parallel& parallel);

// The state that entered each step of a direction: y of the step before, h_0 at the first one, or
// zero after a reset.
struct PreviousStates {
  const void* y = nullptr;  // rows of y_stride bytes, this direction's column first
  int64_t y_stride_bytes = 0;
  const void* h_0 = nullptr;  // (N, row)
  int64_t row_bytes = 0;
  const uint8_t* reset_mask = nullptr;  // (T, N) or null
  bool reverse = false;
};
void gather_previous_states(const SequenceLayout& layout, int64_t batch,
                            const PreviousStates& states, void* out, const Parallel& parallel);

}  // namespace lstm_fused::cpu
