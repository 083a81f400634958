// SPDX-License-Identifier: BSD-3-Clause
// The arrays of the problem of a check, in one piece of memory, and the numbers in them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/lstm.h"

namespace lstm_fused::cuda {

// Arrays of both directions lie one behind the other, but for those of common/lstm.h whose rows
// hold both. Each begins at a multiple of 256 bytes.
struct ProblemInputs {
  int64_t x, lengths, reset_mask;
  int64_t w_ih, w_hh, b_ih, b_hh, h_0, c_0;
  int64_t grad_y, grad_cell_states, grad_h_n, grad_c_n;
  int64_t peephole, h_mask, keep_c, keep_h, reset_h, reset_c;  // options of the cell
  int64_t bytes;
};
struct ProblemOutputs {
  int64_t y, cell_states, h_n, c_n, gates, cells;
  int64_t grad_gates, grad_h_0, grad_c_0;
  int64_t grad_peephole, grad_reset_h, grad_reset_c;
  int64_t bytes;
};
ProblemInputs lay_out_inputs(const LstmShape& shape, DType dtype);
ProblemOutputs lay_out_outputs(const LstmShape& shape, DType dtype);

// The inputs, as they lie in memory: always the same numbers, with rows of all lengths and resets.
std::vector<char> make_inputs(const LstmShape& shape, DType dtype);

// How far results of one problem may lie apart that are summed in different orders, in units of
// their magnitude, where that is above 1: four times what numerics.md allows for rounding. Results
// of a broken kernel differ by their magnitude.
double allowed_difference(DType dtype, bool allow_tf32);

// Compares outputs, copies of memory laid out as ProblemOutputs; those of the forward or of the
// backward, of a cell with options or without. Gives where they lie too far apart; empty: nowhere.
std::string find_difference(const LstmShape& shape, DType dtype, bool backward, bool has_options,
                            double allowed, const std::vector<char>& expected,
                            const std::vector<char>& found);

}  // namespace lstm_fused::cuda
