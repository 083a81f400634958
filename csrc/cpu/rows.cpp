// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/rows.h"

#include <numeric>

#include "cpu/runtime/scratch.h"

namespace lstm_fused::cpu {

RowPointers matrix_rows(const void* matrix, int64_t rows, int64_t row_bytes) {
  RowPointers pointers(rows);
  for (int64_t m = 0; m < rows; ++m) pointers[m] = advance(matrix, m, row_bytes);
  return pointers;
}

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

RowPointers h_prev_rows(const SequenceLayout& layout, int64_t batch, const HPrevSource& states) {
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

RowPointers h_prev_rows(const LstmGatesArgs& forward, int direction, const void* zeros) {
  const LstmShape& shape = forward.shape;
  const int64_t storage = dtype_size(forward.dtype);
  HPrevSource states;
  states.y = forward.direction[direction].y;
  states.y_stride_bytes = shape.directions * shape.output_size * storage;
  states.h_0 = forward.direction[direction].h_0;
  states.row_bytes = shape.output_size * storage;
  states.reset_mask = forward.reset_mask;
  states.reverse = direction == 1;
  states.zeros = zeros;
  return h_prev_rows(*forward.layout, shape.batch, states);
}

SampleRows sample_rows(const SequenceLayout& layout, int64_t samples) {
  const auto for_each_row = [&](const auto& visit) {
    for (int64_t t = 0; t < layout.steps(); ++t) {
      for (int64_t j = 0; j < layout.active[t]; ++j) {
        visit(layout.batch_row(j) % samples, layout.step_offset[t] + j);
      }
    }
  };
  SampleRows out;
  out.first.assign(samples + 1, 0);
  for_each_row([&](int64_t sample, int64_t) { ++out.first[sample + 1]; });
  std::partial_sum(out.first.begin(), out.first.end(), out.first.begin());
  std::vector<int64_t> next(out.first.begin(), out.first.end() - 1);
  out.rows.resize(layout.data_rows());
  for_each_row([&](int64_t sample, int64_t row) { out.rows[next[sample]++] = row; });
  return out;
}

}  // namespace lstm_fused::cpu
