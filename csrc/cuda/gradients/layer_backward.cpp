// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/gradients/layer_backward.h"

#include "cuda/blas.h"
#include "cuda/direction_weights.h"
#include "cuda/gradients/rebuild_gates.h"
#include "cuda/gradients/weight_gradients.h"
#include "cuda/lstm_backward.h"
#include "cuda/workspace.h"

namespace lstm_fused::cuda {
namespace {

// Whether the forward saved gates; the same for all directions.
bool saves_gates(const LayerBackwardCall& call) {
  return call.direction[0].recurrence.gates != nullptr;
}
bool wants_weights(const LayerBackwardCall& call) { return call.direction[0].grad_w_ih != nullptr; }

LayerBackwardWorkspace parts_of_workspace(const LayerBackwardCall& call, int64_t samples,
                                          const LstmPlan& plan) {
  LayerBackwardOptions options;
  options.has_lengths = call.lengths != nullptr;
  options.has_reset_mask = call.reset_mask != nullptr;
  options.rebuilds_gates = !saves_gates(call);
  options.wants_weights = wants_weights(call);
  options.samples = samples;
  options.recurrence_bytes = plan.workspace_bytes;
  return layer_backward_workspace(call.shape, call.dtype, options);
}

class LayerBackward {
 public:
  LayerBackward(const LayerBackwardCall& call, int64_t samples, const LstmPlan& plan);
  void run();

 private:
  void* workspace(int64_t offset) const { return static_cast<char*>(call_.workspace) + offset; }
  void rebuild() const;
  void compute_cell_output();
  void run_recurrence() const;

  const LayerBackwardCall& call_;
  const LstmPlan& plan_;
  const Blas blas_;
  const LayerBackwardWorkspace parts_;
  GradientCall gradients_;
};

LayerBackward::LayerBackward(const LayerBackwardCall& call, int64_t samples, const LstmPlan& plan)
    : call_(call),
      plan_(plan),
      blas_(call.blas_handle, call.stream, call.dtype, plan.allow_tf32),
      parts_(parts_of_workspace(call, samples, plan)) {
  const LstmShape& s = call.shape;
  const int64_t storage = dtype_size(call.dtype), rows = s.steps * s.batch;
  gradients_.shape = s;
  gradients_.dtype = call.dtype;
  gradients_.samples = samples;
  gradients_.lengths = call.lengths;
  gradients_.reset_mask = call.reset_mask;
  gradients_.x = call.x;
  gradients_.workspace = workspace(parts_.shared);
  gradients_.stream = call.stream;
  for (int d = 0; d < s.directions; ++d) {
    GradientDirection& to = gradients_.direction[d];
    static_cast<LayerBackwardDirection&>(to) = call.direction[d];
    LstmBackwardDirection& recurrence = to.recurrence;
    recurrence.grad_gates =
        advance(workspace(parts_.grad_gates), d * rows * kGates * s.hidden_size, storage);
    // Gates that were rebuilt are overwritten by their gradients.
    if (!saves_gates(call)) recurrence.gates = recurrence.grad_gates;
    if (!s.projection) continue;
    recurrence.grad_output =
        advance(workspace(parts_.grad_output), d * rows * s.output_size, storage);
    if (!wants_weights(call)) continue;
    to.cell_output = advance(workspace(parts_.cell_output), d * rows * s.hidden_size, storage);
  }
}

// Makes the gates that the forward did not save.
void LayerBackward::rebuild() const {
  RebuildCall rebuild;
  rebuild.shape = call_.shape;
  rebuild.dtype = call_.dtype;
  rebuild.lengths = call_.lengths;
  rebuild.reset_mask = call_.reset_mask;
  rebuild.x = call_.x;
  for (int d = 0; d < call_.shape.directions; ++d) {
    const LayerBackwardDirection& from = gradients_.direction[d];
    rebuild.direction[d] = {from.recurrence.weights, from.h_0, from.y, from.recurrence.grad_gates};
  }
  rebuild.workspace = workspace(parts_.shared);
  rebuild.stream = call_.stream;
  rebuild_gates(rebuild, blas_);
}

// o·tanh(c) of all directions, which W_hr's gradient multiplies.
void LayerBackward::compute_cell_output() {
  for (int d = 0; d < call_.shape.directions; ++d) {
    const GradientDirection& direction = gradients_.direction[d];
    CellOutputCall args;
    args.shape = call_.shape;
    args.dtype = call_.dtype;
    args.lengths = call_.lengths;
    args.gates = direction.recurrence.gates;
    args.cells = direction.recurrence.cells;
    args.out = direction.cell_output;
    args.stream = call_.stream;
    cell_output(args);
  }
}

void LayerBackward::run_recurrence() const {
  LstmBackwardCall recurrence;
  recurrence.shape = call_.shape;
  recurrence.dtype = call_.dtype;
  recurrence.lengths = call_.lengths;
  recurrence.reset_mask = call_.reset_mask;
  for (int d = 0; d < call_.shape.directions; ++d) {
    recurrence.direction[d] = gradients_.direction[d].recurrence;
  }
  recurrence.workspace = workspace(parts_.shared);
  recurrence.blas_handle = call_.blas_handle;
  recurrence.stream = call_.stream;
  lstm_backward(recurrence, plan_);
}

void LayerBackward::run() {
  if (!saves_gates(call_)) rebuild();
  // NOTE: ahead of the recurrence, which overwrites gates that were rebuilt.
  if (wants_weights(call_) && call_.shape.projection) compute_cell_output();
  run_recurrence();
  if (call_.grad_x != nullptr) input_gradient(gradients_, call_.grad_x, blas_);
  if (wants_weights(call_)) weight_gradients(gradients_, blas_);
}

}  // namespace

int64_t layer_backward_workspace_bytes(const LayerBackwardCall& call, int64_t samples,
                                       const LstmPlan& plan) {
  return parts_of_workspace(call, samples, plan).bytes;
}

void layer_backward(const LayerBackwardCall& call, const LstmPlan& plan) {
  run_layer_backward(call, /*samples=*/1, plan);
}

void run_layer_backward(const LayerBackwardCall& call, int64_t samples, const LstmPlan& plan) {
  check_shape(call.shape);
  LayerBackward(call, samples, plan).run();
}

}  // namespace lstm_fused::cuda
