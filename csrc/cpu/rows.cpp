// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/rows.h"

#include <cstring>

namespace lstm_fused::cpu {
namespace {

int64_t batch_row(const SequenceLayout& layout, int64_t j) {
  return layout.row_of.empty() ? j : layout.row_of[j];
}

const char* at(const void* base, int64_t row, int64_t bytes) {
  return static_cast<const char*>(base) + row * bytes;
}
char* at(void* base, int64_t row, int64_t bytes) { return static_cast<char*>(base) + row * bytes; }

}  // namespace

void gather_data_rows(const SequenceLayout& layout, int64_t batch, const void* sequence,
                      int64_t row_bytes, void* out, const Parallel& parallel) {
  parallel.for_each(layout.steps(), [&](int64_t t) {
    const int64_t first = layout.sequence_row(t, batch);
    for (int64_t j = 0; j < layout.active[t]; ++j) {
      std::memcpy(at(out, layout.step_offset[t] + j, row_bytes),
                  at(sequence, first + batch_row(layout, j), row_bytes), row_bytes);
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
      char* to = at(out, layout.step_offset[t] + j, bytes);
      const int64_t n = batch_row(layout, j);
      if (states.reset_mask && states.reset_mask[t * batch + n]) {
        std::memset(to, 0, bytes);
      } else if (j < active_before) {
        std::memcpy(to, at(states.y, first_before + n, states.y_stride_bytes), bytes);
      } else {
        std::memcpy(to, at(states.h_0, n, bytes), bytes);
      }
    }
  });
}

}  // namespace lstm_fused::cpu
