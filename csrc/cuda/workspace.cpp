// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/workspace.h"

#include <algorithm>

#include "common/integers.h"

namespace lstm_fused::cuda {
namespace {

// cudaMalloc's alignment. Vector accesses, ours and those of cuBLAS's fastest kernels, need 16
// bytes.
constexpr int64_t kAlignment = 256;
static_assert((kAlignment & (kAlignment - 1)) == 0, "an alignment is a power of two");

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

// Takes room for the results of recurrent_weights, which are a single direction's weights
// themselves where they can be.
void take_weights(const LstmShape& shape, int64_t storage, bool composite, Cursor& cursor,
                  int64_t* w_hh, int64_t* w_hr) {
  const bool pair = shape.directions == 2;
  const int64_t columns = composite ? shape.hidden_size : shape.output_size;
  *w_hh = cursor.take(pair || composite, shape.directions * kGates * shape.hidden_size * columns,
                      storage);
  *w_hr = cursor.take(pair && shape.projection && !composite,
                      shape.directions * shape.output_size * shape.hidden_size, storage);
}

}  // namespace

StepwiseForwardWorkspace stepwise_forward_workspace(const LstmShape& shape, DType dtype,
                                                    bool training, bool composite) {
  const int64_t storage = dtype_size(dtype), accumulator = accumulator_size(dtype);
  const int64_t rows = shape.directions * shape.batch;
  const int64_t units = rows * shape.hidden_size;
  StepwiseForwardWorkspace workspace;
  Cursor cursor;
  workspace.prev_cell_output = cursor.take(true, units, storage);
  workspace.h_prev = cursor.take(shape.projection && !composite, rows * shape.output_size, storage);
  workspace.first_recurrent = cursor.take(true, kGates * units, accumulator);
  workspace.cell = cursor.take(!training, units, accumulator);
  workspace.cell_output = cursor.take(shape.projection, shape.steps * units, storage);
  take_weights(shape, storage, composite, cursor, &workspace.w_hh, &workspace.w_hr);
  workspace.bytes = cursor.bytes();
  return workspace;
}

StepwiseBackwardWorkspace stepwise_backward_workspace(const LstmShape& shape, DType dtype,
                                                      bool composite) {
  const int64_t storage = dtype_size(dtype), accumulator = accumulator_size(dtype);
  const int64_t rows = shape.directions * shape.batch;
  const int64_t units = rows * shape.hidden_size;
  StepwiseBackwardWorkspace workspace;
  Cursor cursor;
  workspace.recurrent = cursor.take(true, units, accumulator);
  workspace.cell = cursor.take(true, units, accumulator);
  workspace.grad_cell_output = cursor.take(shape.projection, shape.steps * units, storage);
  workspace.grad_last_cell_output = cursor.take(shape.projection, units, storage);
  workspace.grad_h_prev =
      cursor.take(shape.projection, shape.steps * rows * shape.output_size, storage);
  take_weights(shape, storage, composite, cursor, &workspace.w_hh, &workspace.w_hr);
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
  // Products that the pre-activations of 16-bit types are made by: at twice the gates' bytes an
  // element, an eighth of them takes a quarter of the gates' memory, while a product still has many
  // steps' rows.
  constexpr int64_t kProducts = 8;
  const int64_t storage = dtype_size(dtype), accumulator = accumulator_size(dtype);
  const int64_t gates = kGates * shape.hidden_size;
  const bool in_gates = storage == accumulator;
  RebuildWorkspace workspace;
  workspace.steps_per_product = in_gates ? shape.steps : ceil_div(shape.steps, kProducts);
  Cursor cursor;
  workspace.preactivations =
      cursor.take(!in_gates, workspace.steps_per_product * shape.batch * gates, accumulator);
  workspace.h_prev = cursor.take(has_lengths || has_reset_mask,
                                 shape.steps * shape.batch * shape.output_size, storage);
  workspace.bytes = cursor.bytes();
  return workspace;
}

WeightGradientWorkspace weight_gradient_workspace(const LstmShape& shape, DType dtype,
                                                  bool has_lengths, bool has_reset_mask,
                                                  int64_t samples) {
  const int64_t storage = dtype_size(dtype);
  const int64_t rows = shape.steps * shape.batch, sum_rows = rows / samples;
  const int64_t parts = ceil_div(sum_rows, rows_per_sum_part(sum_rows));
  WeightGradientWorkspace workspace;
  Cursor cursor;
  workspace.input = cursor.take(has_lengths, rows * shape.input_size, storage);
  workspace.h_prev = cursor.take(has_lengths || has_reset_mask, rows * shape.output_size, storage);
  workspace.sums =
      cursor.take(true, parts * samples * kGates * shape.hidden_size, accumulator_size(dtype));
  workspace.bytes = cursor.bytes();
  return workspace;
}

int64_t rows_per_sum_part(int64_t rows) {
  // 64 parts of 4H = 512 columns make 1024 blocks, several for each SM, and the second stage, one
  // thread a column, adds few sums.
  constexpr int64_t kMaxParts = 64;
  // Eight for each of a block's eight warps, so that a small batch has few partial sums.
  constexpr int64_t kMinRows = 64;
  return std::max(kMinRows, ceil_div(rows, kMaxParts));
}

LayerBackwardWorkspace layer_backward_workspace(const LstmShape& shape, DType dtype,
                                                const LayerBackwardOptions& options) {
  const int64_t storage = dtype_size(dtype);
  const int64_t rows = shape.directions * shape.steps * shape.batch;
  int64_t shared = options.recurrence_bytes;
  if (options.rebuilds_gates) {
    shared = std::max(
        shared, rebuild_workspace(shape, dtype, options.has_lengths, options.has_reset_mask).bytes);
  }
  if (options.wants_weights) {
    shared = std::max(shared, weight_gradient_workspace(shape, dtype, options.has_lengths,
                                                        options.has_reset_mask, options.samples)
                                  .bytes);
  }
  LayerBackwardWorkspace workspace;
  Cursor cursor;
  workspace.grad_gates = cursor.take(true, rows * kGates * shape.hidden_size, storage);
  workspace.grad_output = cursor.take(shape.projection, rows * shape.output_size, storage);
  workspace.cell_output =
      cursor.take(shape.projection && options.wants_weights, rows * shape.hidden_size, storage);
  workspace.shared = cursor.take(true, shared, 1);
  workspace.bytes = cursor.bytes();
  return workspace;
}

OptionsForwardWorkspace options_forward_workspace(const LstmShape& shape, DType dtype,
                                                  bool training, bool preactivations_in_gates,
                                                  const OptionsKernels& kernels) {
  const int64_t storage = dtype_size(dtype), accumulator = accumulator_size(dtype);
  const int64_t rows = shape.directions * shape.batch;
  const int64_t units = rows * shape.hidden_size, outputs = rows * shape.output_size;
  OptionsForwardWorkspace workspace;
  Cursor cursor;
  workspace.preactivations =
      cursor.take(!preactivations_in_gates, shape.steps * kGates * units, accumulator);
  workspace.recurrence = cursor.take(!kernels.stepwise, kernels.recurrence_bytes, 1);
  if (!kernels.stepwise) {
    workspace.bytes = cursor.bytes();
    return workspace;
  }
  workspace.recurrent = cursor.take(kernels.has_norms, kGates * units, accumulator);
  workspace.output_parts = cursor.take(kernels.has_norms, 2 * units, accumulator);
  workspace.entering = cursor.take(true, outputs, storage);
  workspace.cell = cursor.take(!training, units, accumulator);
  workspace.cell_output = cursor.take(shape.projection, units, storage);
  workspace.h = cursor.take(shape.projection, outputs, storage);
  take_weights(shape, storage, /*composite=*/false, cursor, &workspace.w_hh, &workspace.w_hr);
  workspace.bytes = cursor.bytes();
  return workspace;
}

OptionsBackwardWorkspace options_backward_workspace(const LstmShape& shape, DType dtype,
                                                    const OptionsKernels& kernels) {
  const int64_t accumulator = accumulator_size(dtype);
  const int64_t rows = shape.directions * shape.batch;
  const int64_t units = rows * shape.hidden_size, outputs = rows * shape.output_size;
  OptionsBackwardWorkspace workspace;
  Cursor cursor;
  const bool stepwise = kernels.stepwise, has_norms = kernels.has_norms;
  workspace.recurrence = cursor.take(!stepwise, kernels.recurrence_bytes, 1);
  workspace.product = cursor.take(stepwise, outputs, accumulator);
  workspace.dh = cursor.take(shape.projection, units, accumulator);
  workspace.cell = cursor.take(stepwise, units, accumulator);
  workspace.carry = cursor.take(stepwise, units, accumulator);
  workspace.sums = cursor.bytes();
  workspace.grad_peephole = cursor.take(true, kPeepholes * units, accumulator);
  workspace.grad_reset_h = cursor.take(true, outputs, accumulator);
  workspace.grad_reset_c = cursor.take(true, units, accumulator);
  workspace.grad_gains = cursor.take(has_norms, kNorms * kGates * units, accumulator);
  workspace.grad_cell_norm = cursor.take(has_norms, 2 * units, accumulator);
  workspace.grad_bias = cursor.take(has_norms, kGates * units, accumulator);
  workspace.sums_end = cursor.bytes();
  workspace.scratch = cursor.take(has_norms, kNormScratch * units, accumulator);
  if (stepwise) {
    take_weights(shape, dtype_size(dtype), /*composite=*/false, cursor, &workspace.w_hh,
                 &workspace.w_hr);
  }
  workspace.bytes = cursor.bytes();
  return workspace;
}

OptionsLayerWorkspace options_layer_workspace(const LstmShape& shape, DType dtype,
                                              const OptionsLayerNeeds& needs) {
  const int64_t storage = dtype_size(dtype);
  const int64_t rows = shape.directions * shape.steps * shape.batch;
  int64_t shared = options_backward_workspace(shape, dtype, needs.kernels).bytes;
  if (needs.wants_weights) {
    shared = std::max(shared, weight_gradient_workspace(shape, dtype, needs.has_lengths,
                                                        needs.has_reset_mask, /*samples=*/1)
                                  .bytes);
  }
  OptionsLayerWorkspace workspace;
  Cursor cursor;
  workspace.grad_gates = cursor.take(true, rows * kGates * shape.hidden_size, storage);
  workspace.grad_recurrent =
      cursor.take(needs.kernels.has_norms, rows * kGates * shape.hidden_size, storage);
  workspace.grad_output = cursor.take(shape.projection, rows * shape.output_size, storage);
  workspace.cell_output =
      cursor.take(shape.projection && needs.wants_weights, rows * shape.hidden_size, storage);
  workspace.recurrent_inputs =
      cursor.take(needs.wants_weights && needs.changes_h, rows * shape.output_size, storage);
  workspace.shared = cursor.take(true, shared, 1);
  workspace.bytes = cursor.bytes();
  return workspace;
}

}  // namespace lstm_fused::cuda
