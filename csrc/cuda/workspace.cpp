// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/workspace.h"

#include "common/integers.h"

namespace lstm_fused::cuda {
namespace {

constexpr int64_t kAlignment = 256;  // cudaMalloc's, of which vector accesses and cuBLAS make use

// Hands out the parts, one after the other.
class Cursor {
 public:
  int64_t take(bool used, int64_t elements, int64_t element_bytes) {
    const int64_t begin = bytes_;
    if (used) bytes_ += round_up(elements * element_bytes, kAlignment);
    return begin;
  }
  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_ = 0;
};

}  // namespace

StepwiseForwardWorkspace stepwise_forward_workspace(const LstmShape& shape, DType dtype,
                                                    bool training) {
  const int64_t storage = dtype_size(dtype), accumulator = accumulator_size(dtype);
  const int64_t gates = kGates * shape.hidden_size;
  const int64_t rows = shape.directions * shape.batch;
  const bool pair = shape.directions == 2;
  StepwiseForwardWorkspace workspace;
  Cursor cursor;
  workspace.recurrent = cursor.take(true, rows * gates, accumulator);
  workspace.first_recurrent = cursor.take(true, rows * gates, accumulator);
  workspace.cell = cursor.take(!training, rows * shape.hidden_size, accumulator);
  workspace.hidden = cursor.take(shape.projection, rows * shape.hidden_size, storage);
  workspace.w_hh = cursor.take(pair, 3 * gates * shape.output_size, storage);
  workspace.w_hr =
      cursor.take(pair && shape.projection, 3 * shape.output_size * shape.hidden_size, storage);
  workspace.bytes = cursor.bytes();
  return workspace;
}

StepwiseBackwardWorkspace stepwise_backward_workspace(const LstmShape& shape, DType dtype) {
  const int64_t storage = dtype_size(dtype), accumulator = accumulator_size(dtype);
  const int64_t rows = shape.directions * shape.batch;
  const bool pair = shape.directions == 2;
  StepwiseBackwardWorkspace workspace;
  Cursor cursor;
  workspace.recurrent = cursor.take(true, rows * shape.output_size, accumulator);
  workspace.hidden = cursor.take(shape.projection, rows * shape.hidden_size, accumulator);
  workspace.cell = cursor.take(true, rows * shape.hidden_size, accumulator);
  workspace.w_hh = cursor.take(pair, 3 * kGates * shape.hidden_size * shape.output_size, storage);
  workspace.w_hr =
      cursor.take(pair && shape.projection, 3 * shape.output_size * shape.hidden_size, storage);
  workspace.bytes = cursor.bytes();
  return workspace;
}

ForwardWorkspace forward_workspace(const LstmShape& shape, DType dtype,
                                   bool preactivations_in_gates, int64_t recurrence_bytes) {
  const int64_t accumulator = accumulator_size(dtype);
  const int64_t gates = shape.directions * kGates * shape.hidden_size;
  ForwardWorkspace workspace;
  Cursor cursor;
  workspace.bias = cursor.take(true, gates, accumulator);
  workspace.preactivations =
      cursor.take(!preactivations_in_gates, shape.steps * shape.batch * gates, accumulator);
  workspace.recurrence = cursor.take(true, recurrence_bytes, 1);
  workspace.bytes = cursor.bytes();
  return workspace;
}

RebuildWorkspace rebuild_workspace(const LstmShape& shape, DType dtype, bool has_lengths,
                                   bool has_reset_mask) {
  // Products that the pre-activations of 16-bit types are made by: so that those take a quarter of
  // the gates' memory, while a product has many steps' rows.
  constexpr int64_t kProducts = 8;
  const int64_t storage = dtype_size(dtype), accumulator = accumulator_size(dtype);
  const int64_t gates = kGates * shape.hidden_size;
  const bool in_gates = storage == accumulator;
  RebuildWorkspace workspace;
  workspace.steps_per_product = in_gates ? shape.steps : ceil_div(shape.steps, kProducts);
  Cursor cursor;
  workspace.preactivations =
      cursor.take(!in_gates, workspace.steps_per_product * shape.batch * gates, accumulator);
  workspace.previous = cursor.take(has_lengths || has_reset_mask,
                                   shape.steps * shape.batch * shape.output_size, storage);
  workspace.bytes = cursor.bytes();
  return workspace;
}

WeightGradientWorkspace weight_gradient_workspace(const LstmShape& shape, DType dtype,
                                                  bool has_lengths, bool has_reset_mask) {
  const int64_t storage = dtype_size(dtype);
  const int64_t rows = shape.steps * shape.batch;
  WeightGradientWorkspace workspace;
  Cursor cursor;
  workspace.input = cursor.take(has_lengths, rows * shape.input_size, storage);
  workspace.previous =
      cursor.take(has_lengths || has_reset_mask, rows * shape.output_size, storage);
  workspace.sums =
      cursor.take(true, kMaxSumParts * kGates * shape.hidden_size, accumulator_size(dtype));
  workspace.bytes = cursor.bytes();
  return workspace;
}

}  // namespace lstm_fused::cuda
