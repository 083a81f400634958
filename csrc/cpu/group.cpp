// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/group.h"

namespace lstm_fused::cpu {

std::vector<int64_t> sorted_lengths(const SequenceLayout& layout, int64_t batch) {
  std::vector<int64_t> lengths(batch, 0);
  int64_t row = batch;
  for (int64_t t = 0; t < layout.steps(); ++t) {
    while (row > layout.active[t]) lengths[--row] = t;
  }
  while (row > 0) lengths[--row] = layout.steps();
  return lengths;
}

std::vector<Group> make_groups(const LstmShape& shape, const SequenceLayout& layout,
                               const std::vector<int64_t>& lengths, const LstmPlan& plan) {
  std::vector<Group> groups;
  for (int direction = 0; direction < shape.directions; ++direction) {
    int64_t begin = 0;
    int64_t seen = 0;  // data rows before `begin`
    for (int g = 0; g < plan.row_groups; ++g) {
      const bool last = g + 1 == plan.row_groups;
      const int64_t target = layout.data_rows() * (g + 1) / plan.row_groups;
      int64_t end = begin;
      // NOTE: the row that crosses the target goes to the side that it lies on for the most part.
      while (end < shape.batch && (last || seen + lengths[end] / 2 < target)) {
        seen += lengths[end++];
      }
      groups.push_back(
          {&layout, shape.batch, direction, begin, end, begin < end ? lengths[begin] : 0});
      begin = end;
    }
  }
  return groups;
}

}  // namespace lstm_fused::cpu
