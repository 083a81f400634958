// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/rows.h"

#include <cstring>

#include "cpu/scratch.h"

namespace lstm_fused::cpu {
namespace {

// Copies row `from` of one array to row `to` of another. Strides are in bytes.
void copy_row(const void* source, int64_t from, int64_t source_stride, void* out, int64_t to,
              int64_t bytes) {
  std::memcpy(advance(out, to, bytes), advance(source, from, source_stride), bytes);
}

}  // namespace

void gather_data_rows(const SequenceLayout& layout, int64_t batch, const void* sequence,
                      int64_t row_bytes, void* out, const Parallel& parallel) {
  parallel.for_each(layout.steps(), [&](int64_t t) {
    const int64_t first = layout.sequence_row(t, batch);
    for (int64_t j = 0; j < layout.active[t]; ++j) {
      copy_row(sequence, first + layout.batch_row(j), row_bytes, out, layout.step_offset[t] + j,
               row_bytes);
    }
  });
}

void scatter_data_rows(const SequenceLayout& layout, int64_t batch, const void* data,
                       int64_t row_bytes, void* sequence, const Parallel& parallel) {
  parallel.for_each(layout.steps(), [&](int64_t t) {
    const int64_t first = layout.sequence_row(t, batch);
    for (int64_t j = 0; j < layout.active[t]; ++j) {
      copy_row(data, layout.step_offset[t] + j, row_bytes, sequence, first + layout.batch_row(j),
               row_bytes);
    }
  });
}

void gather_previous_states(const SequenceLayout& layout, int64_t batch,
                            const PreviousStates& states, void* out, const Parallel& parallel) {
  const int64_t bytes = states.row_bytes;
  parallel.for_each(layout.steps(), [&](int64_t t) {
    const int64_t before = states.reverse ? t + 1 : t - 1;
    const bool has_before = before >= 0 && before < layout.steps();
    const int64_t active_before = has_before ? layout.active[before] : 0;
    const int64_t first_before = has_before ? layout.sequence_row(before, batch) : 0;
    for (int64_t j = 0; j < layout.active[t]; ++j) {
      const int64_t to = layout.step_offset[t] + j;
      const int64_t n = layout.batch_row(j);
      if (states.reset_mask && states.reset_mask[t * batch + n]) {
        std::memset(advance(out, to, bytes), 0, bytes);
      } else if (j < active_before) {
        copy_row(states.y, first_before + n, states.y_stride_bytes, out, to, bytes);
      } else {
        copy_row(states.h_0, n, bytes, out, to, bytes);
      }
    }
  });
}

}  // namespace lstm_fused::cpu
