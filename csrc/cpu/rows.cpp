// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/rows.h"

#include <cstring>

#include "cpu/scratch.h"

namespace lstm_fused::cpu {

RowPointers data_rows(const SequenceLayout& layout, int64_t batch, const void* sequence,
                      int64_t row_bytes) {
  RowPointers rows;
  rows.reserve(layout.data_rows());
  for (int64_t t = 0; t < layout.steps(); ++t) {
    const int64_t first = layout.sequence_row(t, batch);
    for (int64_t j = 0; j < layout.active[t]; ++j) {
      rows.push_back(advance(sequence, first + layout.batch_row(j), row_bytes));
    }
  }
  return rows;
}

RowPointers previous_state_rows(const SequenceLayout& layout, int64_t batch,
                                const PreviousStates& states) {
  RowPointers rows;
  rows.reserve(layout.data_rows());
  for (int64_t t = 0; t < layout.steps(); ++t) {
    const int64_t before = states.reverse ? t + 1 : t - 1;
    const bool has_before = before >= 0 && before < layout.steps();
    const int64_t active_before = has_before ? layout.active[before] : 0;
    const int64_t first_before = has_before ? layout.sequence_row(before, batch) : 0;
    for (int64_t j = 0; j < layout.active[t]; ++j) {
      const int64_t n = layout.batch_row(j);
      if (states.reset_mask && states.reset_mask[t * batch + n]) {
        rows.push_back(states.zeros);
      } else if (j < active_before) {
        rows.push_back(advance(states.y, first_before + n, states.y_stride_bytes));
      } else {
        rows.push_back(advance(states.h_0, n, states.row_bytes));
      }
    }
  }
  return rows;
}

void gather_rows(const RowPointers& rows, int64_t row_bytes, void* out, const Parallel& parallel) {
  parallel.for_each(static_cast<int64_t>(rows.size()), [&](int64_t i) {
    std::memcpy(advance(out, i, row_bytes), rows[i], row_bytes);
  });
}

void scatter_data_rows(const SequenceLayout& layout, int64_t batch, const void* data,
                       int64_t row_bytes, void* sequence, const Parallel& parallel) {
  parallel.for_each(layout.steps(), [&](int64_t t) {
    const int64_t first = layout.sequence_row(t, batch);
    for (int64_t j = 0; j < layout.active[t]; ++j) {
      std::memcpy(advance(sequence, first + layout.batch_row(j), row_bytes),
                  advance(data, layout.step_offset[t] + j, row_bytes), row_bytes);
    }
  });
}

}  // namespace lstm_fused::cpu
