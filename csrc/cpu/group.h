// SPDX-License-Identifier: BSD-3-Clause
// A group: sorted rows [begin, end) of one direction, and where their data lies at each step.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/lstm.h"
#include "cpu/kernels/kernels.h"
#include "cpu/plan.h"
#include "cpu/runtime/scratch.h"

namespace lstm_fused::cpu {

// Rows (or MutableRows) from row j on.
template <typename View>
View skip_rows(const View& rows, int64_t j, int64_t size) {
  if (!rows.base) return {};
  if (rows.order) return {rows.base, rows.stride, rows.order + j};
  return {advance(rows.base, j * rows.stride, size), rows.stride, nullptr};
}

inline Resets skip_rows(const Resets& resets, int64_t j) {
  if (!resets.flags) return {};
  if (resets.order) return {resets.flags, resets.order + j, resets.limit - j};
  return {resets.flags + j, nullptr, resets.limit - j};
}

struct Group {
  const SequenceLayout* layout = nullptr;
  int64_t batch = 0;
  int direction = 0;  // 1 processes its steps from each row's end to 0
  int64_t begin = 0, end = 0;
  int64_t steps = 0;  // of its longest row

  int64_t rows() const { return end - begin; }

  // Rows that take part in step t; 0 outside the sequence.
  int64_t active(int64_t t) const {
    if (t < 0 || t >= steps) return 0;
    return std::clamp<int64_t>(layout->active[t] - begin, 0, rows());
  }

  const int64_t* order() const {
    return layout->row_of.empty() ? nullptr : layout->row_of.data() + begin;
  }
  // Batch row of the group's row j.
  int64_t batch_row(int64_t j) const { return layout->batch_row(begin + j); }

  // The group's rows within (N, stride) elements of `size` bytes.
  template <typename View, typename Pointer>
  View batch_rows(Pointer base, int64_t stride, int64_t size) const {
    return {advance(base, order() ? 0 : begin * stride, size), stride, order()};
  }
  // The group's rows of step t within x or y.
  template <typename View, typename Pointer>
  View sequence_rows(Pointer base, int64_t stride, int64_t size, int64_t t) const {
    const int64_t first = layout->sequence_row(t, batch);
    return batch_rows<View>(advance(base, first * stride, size), stride, size);
  }
  // The group's rows of step t within M rows, of which `base` holds those from `first` on.
  template <typename View, typename Pointer>
  View data_rows(Pointer base, int64_t stride, int64_t size, int64_t t, int64_t first = 0) const {
    const int64_t row = layout->step_offset[t] + begin - first;
    return {advance(base, row * stride, size), stride, nullptr};
  }
  // Rows below `limit` that reset_mask (T, N) marks at step t.
  Resets resets(const uint8_t* reset_mask, int64_t t, int64_t limit) const {
    if (!reset_mask || limit <= 0) return {};
    return {reset_mask + t * batch + (order() ? 0 : begin), order(), limit};
  }
  // Row j's initial state is replaced by zero.
  bool resets_first(const uint8_t* reset_mask, int64_t j, int64_t length) const {
    if (!reset_mask || length == 0) return false;
    const int64_t t = direction == 0 ? 0 : length - 1;
    return reset_mask[t * batch + batch_row(j)] != 0;
  }
};

// Lengths of the sorted rows.
std::vector<int64_t> sorted_lengths(const SequenceLayout& layout, int64_t batch);

// plan.row_groups groups for each direction, of about the same number of data rows each.
std::vector<Group> make_groups(const LstmShape& shape, const SequenceLayout& layout,
                               const std::vector<int64_t>& lengths, const LstmPlan& plan);

}  // namespace lstm_fused::cpu
