// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/options/layer_backward.h"

#include "common/pointers.h"
#include "cuda/gradients/weight_gradients.h"
#include "cuda/options/recurrent_inputs.h"
#include "cuda/workspace.h"

namespace lstm_fused::cuda {
namespace {

bool wants_weights(const OptionsBackwardCall& call) {
  return call.direction[0].grad_w_ih != nullptr;
}

bool has_norms(const OptionsBackwardCall& call) {
  return call.direction[0].recurrence.options.cell_norm != nullptr;
}

// Whether W_hh multiplied something else than h of the step before.
bool changes_h(const OptionsBackwardCall& call) {
  const CellOptionInputs& inputs = call.direction[0].recurrence.options;
  return inputs.h_mask != nullptr || inputs.reset_h != nullptr;
}

OptionsLayerWorkspace parts_of_workspace(const OptionsBackwardCall& call, const LstmPlan& plan) {
  OptionsLayerNeeds needs;
  needs.has_lengths = call.lengths != nullptr;
  needs.has_reset_mask = call.reset_mask != nullptr;
  needs.wants_weights = wants_weights(call);
  needs.changes_h = changes_h(call);
  needs.kernels = options_kernels(plan, has_norms(call));
  return options_layer_workspace(call.shape, call.dtype, needs);
}

}  // namespace

int64_t options_backward_workspace_bytes(const OptionsBackwardCall& call, const LstmPlan& plan) {
  return parts_of_workspace(call, plan).bytes;
}

void options_backward(const OptionsBackwardCall& call, const LstmPlan& plan) {
  const LstmShape& s = call.shape;
  check_shape(s);
  const Blas blas(call.blas_handle, call.stream, call.dtype, plan.allow_tf32);
  const OptionsLayerWorkspace parts = parts_of_workspace(call, plan);
  const int64_t storage = dtype_size(call.dtype), rows = s.steps * s.batch;
  const auto part = [&](int64_t offset, int d, int64_t columns) {
    return advance(static_cast<char*>(call.workspace) + offset, d * rows * columns, storage);
  };

  // The recurrence.
  OptionRecurrence recurrence[kMaxDirections];
  for (int d = 0; d < s.directions; ++d) {
    OptionRecurrence& to = recurrence[d];
    to.grad_gates = part(parts.grad_gates, d, kGates * s.hidden_size);
    if (has_norms(call)) {
      to.grad_recurrent = part(parts.grad_recurrent, d, kGates * s.hidden_size);
    }
    if (!s.projection) continue;
    to.grad_output = part(parts.grad_output, d, s.output_size);
    if (wants_weights(call)) to.cell_output = part(parts.cell_output, d, s.hidden_size);
  }
  options_recurrence(call, plan, recurrence, part(parts.shared, 0, 0), blas);

  // What follows from it.
  GradientCall gradients;
  gradients.shape = s;
  gradients.dtype = call.dtype;
  gradients.lengths = call.lengths;
  gradients.reset_mask = call.reset_mask;
  gradients.x = call.x;
  gradients.workspace = part(parts.shared, 0, 0);
  gradients.stream = call.stream;
  for (int d = 0; d < s.directions; ++d) {
    const LayerBackwardDirection& from = call.direction[d];
    GradientDirection& to = gradients.direction[d];
    static_cast<LayerBackwardDirection&>(to) = from;
    to.recurrence.grad_gates = recurrence[d].grad_gates;
    to.recurrence.grad_output = recurrence[d].grad_output;
    to.cell_output = recurrence[d].cell_output;
    if (has_norms(call)) {
      to.grad_recurrent = recurrence[d].grad_recurrent;
      to.grad_b_ih = to.grad_b_hh = nullptr;  // the recurrence has made them
    }
    if (!wants_weights(call) || !changes_h(call)) continue;
    RecurrentInputCall inputs;
    inputs.shape = s;
    inputs.dtype = call.dtype;
    inputs.lengths = call.lengths;
    inputs.reset_mask = call.reset_mask;
    inputs.reverse = d == 1;
    inputs.h_0 = from.h_0;
    inputs.y = from.y;
    inputs.options = from.recurrence.options;
    inputs.out = part(parts.recurrent_inputs, d, s.output_size);
    inputs.stream = call.stream;
    recurrent_inputs(inputs);
    to.recurrent_inputs = inputs.out;
  }
  if (call.grad_x != nullptr) input_gradient(gradients, call.grad_x, blas);
  if (wants_weights(call)) weight_gradients(gradients, blas);
}

}  // namespace lstm_fused::cuda
