// SPDX-License-Identifier: BSD-3-Clause
// Allocates by torch's allocator and launches on torch's current stream; waits for nothing.
#include "torch/ops_cuda.h"

#include <algorithm>
#include <utility>

#include "common/error.h"
#include "cuda/blas.h"
#include "cuda/gradients/rebuild_gates.h"
#include "cuda/gradients/weight_gradients.h"
#include "cuda/lstm_backward.h"
#include "cuda/lstm_forward.h"
#include "cuda/workspace.h"
#include "torch/cuda_context.h"
#include "torch/layer.h"

namespace lstm_fused {
namespace {

Layer make_cuda_layer(const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                      const std::vector<Tensor>& weights, const std::optional<Tensor>& lengths,
                      const std::optional<Tensor>& batch_sizes,
                      const std::optional<Tensor>& reset_mask) {
  LSTM_CHECK(!batch_sizes,
             "the CUDA kernels take padded sequences with lengths, got batch_sizes; "
             "lstm_fused.functional.lstm pads them");
  return make_device_layer(input, h_0, c_0, weights, lengths, reset_mask);
}

cuda::PlanSettings plan_settings(const CudaContext& context, bool training, bool recompute) {
  cuda::PlanSettings settings;
  settings.allow_tf32 = cuda::allows_tf32(context.blas_handle);
  settings.training = training;
  settings.recompute = recompute;
  settings.allow_persistent = cuda::allows_persistent();
  settings.facts = context.facts;
  return settings;
}

const int64_t* device_lengths(const Layer& layer) {
  return layer.lengths ? static_cast<const int64_t*>(layer.lengths->const_data_ptr()) : nullptr;
}

Tensor new_workspace(int64_t bytes, const Layer& layer) {
  return new_tensor({bytes}, ScalarType::Byte, layer.device);
}

// Points at the tensors that the gradients of the weights go to, in the order of layer.weights.
void set_weight_outputs(const Layer& layer, const std::vector<Tensor>& grads, int direction,
                        cuda::GradientDirection& out) {
  const int each = layer.weights_per_direction();
  const Tensor* of = grads.data() + direction * each;
  out.grad_w_ih = of[0].mutable_data_ptr();
  out.grad_w_hh = of[1].mutable_data_ptr();
  if (layer.has_bias()) {
    out.grad_b_ih = of[2].mutable_data_ptr();
    out.grad_b_hh = of[3].mutable_data_ptr();
  }
  if (layer.shape.projection) out.grad_w_hr = of[each - 1].mutable_data_ptr();
}

std::vector<Tensor> new_weight_gradients(const Layer& layer) {
  std::vector<Tensor> grads;
  for (const Tensor& weight : layer.weights) {
    const Sizes sizes =
        weight.dim() == 1 ? Sizes{weight.size(0)} : Sizes{weight.size(0), weight.size(1)};
    grads.push_back(new_tensor(sizes, layer.input.scalar_type(), layer.device));
  }
  return grads;
}

// Makes the gates that the forward did not save.
void rebuild_gates(const Layer& layer, const BackwardTensors& tensors, void* workspace,
                   const CudaContext& context, const cuda::Blas& blas) {
  cuda::RebuildCall call;
  call.shape = layer.shape;
  call.dtype = layer.dtype;
  call.lengths = device_lengths(layer);
  call.reset_mask = layer.reset_flags();
  call.x = layer.input.const_data_ptr();
  for (int d = 0; d < layer.shape.directions; ++d) {
    call.direction[d] = tensors.gates_direction(layer, d);
  }
  call.workspace = workspace;
  call.stream = context.stream;
  cuda::rebuild_gates(call, blas);
}

// o·tanh(c) of both directions, (L, T·N, H).
Tensor unprojected_outputs(const Layer& layer, const BackwardTensors& tensors,
                           const CudaContext& context) {
  const LstmShape& shape = layer.shape;
  const Tensor outputs = new_tensor({shape.directions, layer.data_rows, shape.hidden_size},
                                    layer.input.scalar_type(), layer.device);
  for (int d = 0; d < shape.directions; ++d) {
    const LstmBackwardDirection direction = tensors.direction(layer, d);
    cuda::CellOutputCall args;
    args.shape = shape;
    args.dtype = layer.dtype;
    args.lengths = device_lengths(layer);
    args.gates = direction.gates;
    args.cells = direction.cells;
    args.out = element(outputs, d * layer.data_rows * shape.hidden_size, dtype_size(layer.dtype));
    args.stream = context.stream;
    cuda::cell_output(args);
  }
  return outputs;
}

// What both backward ops begin with: the recurrence, which gives the gradients of the gates.
class Backward {
 public:
  Backward(Layer layer_, BackwardTensors tensors_, bool need_weights)
      : layer(std::move(layer_)),
        tensors(std::move(tensors_)),
        context(current_cuda_context(layer.device)),
        plan(cuda::make_backward_plan(layer.shape, layer.dtype,
                                      plan_settings(context, true, false))),
        blas(context.blas_handle, context.stream, layer.dtype, plan.allow_tf32),
        workspace(new_workspace(workspace_bytes(need_weights), layer)) {
    // Make what the recurrence needs, or overwrites.
    if (tensors.rebuilds_gates) {
      rebuild_gates(layer, tensors, workspace.mutable_data_ptr(), context, blas);
    }
    if (need_weights && layer.shape.projection) {
      unprojected = unprojected_outputs(layer, tensors, context);
    } else {
      unprojected = new_tensor({0, layer.data_rows, layer.shape.hidden_size},
                               layer.input.scalar_type(), layer.device);
    }
    run_recurrence();
  }

  // Pointers for what comes from the gates' gradients; those to weights' gradients are null.
  cuda::GradientCall gradient_call() const;
  Tensor input_gradient(const cuda::GradientCall& call) const {
    Tensor grad = new_tensor(sequence_sizes(layer, layer.shape.input_size),
                             layer.input.scalar_type(), layer.device);
    cuda::input_gradient(call, grad.mutable_data_ptr(), blas);
    return grad;
  }

  const Layer layer;
  const BackwardTensors tensors;
  const CudaContext context;  // which keeps the device current
  const cuda::LstmPlan plan;
  const cuda::Blas blas;
  const Tensor workspace;
  Tensor unprojected;  // (L, T·N, H): o·tanh(c); no rows without projection

 private:
  int64_t workspace_bytes(bool need_weights) const;
  void run_recurrence() const;
};

int64_t Backward::workspace_bytes(bool need_weights) const {
  const bool has_lengths = layer.lengths.has_value();
  const bool has_reset_mask = layer.reset_mask.has_value();
  int64_t bytes = plan.workspace_bytes;
  if (need_weights) {
    bytes = std::max(bytes, cuda::weight_gradient_workspace(layer.shape, layer.dtype, has_lengths,
                                                            has_reset_mask)
                                .bytes);
  }
  if (tensors.rebuilds_gates) {
    bytes = std::max(
        bytes,
        cuda::rebuild_workspace(layer.shape, layer.dtype, has_lengths, has_reset_mask).bytes);
  }
  return bytes;
}

void Backward::run_recurrence() const {
  cuda::LstmBackwardCall call;
  call.shape = layer.shape;
  call.dtype = layer.dtype;
  call.lengths = device_lengths(layer);
  call.reset_mask = layer.reset_flags();
  for (int d = 0; d < layer.shape.directions; ++d) call.direction[d] = tensors.direction(layer, d);
  call.workspace = workspace.mutable_data_ptr();
  call.blas_handle = context.blas_handle;
  call.stream = context.stream;
  cuda::lstm_backward(call, plan);
}

cuda::GradientCall Backward::gradient_call() const {
  const LstmShape& s = layer.shape;
  const int64_t storage = dtype_size(layer.dtype);
  cuda::GradientCall call;
  call.shape = s;
  call.dtype = layer.dtype;
  call.lengths = device_lengths(layer);
  call.reset_mask = layer.reset_flags();
  call.x = layer.input.const_data_ptr();
  call.workspace = workspace.mutable_data_ptr();
  call.stream = context.stream;
  for (int d = 0; d < s.directions; ++d) {
    const LstmBackwardDirection from = tensors.direction(layer, d);
    cuda::GradientDirection& to = call.direction[d];
    to.grad_gates = from.grad_gates;
    to.grad_output = from.grad_output;
    to.w_ih = from.weights.w_ih;
    to.h_0 = const_element(layer.h_0, d * s.batch * s.output_size, storage);
    to.y = const_element(tensors.y, d * s.output_size, storage);
    to.cell_output = const_element(unprojected, d * layer.data_rows * s.hidden_size, storage);
  }
  return call;
}

}  // namespace

ForwardResult lstm_forward_cuda(const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                                const std::vector<Tensor>& weights,
                                const std::optional<Tensor>& lengths,
                                const std::optional<Tensor>& batch_sizes,
                                const std::optional<Tensor>& reset_mask, bool save_for_backward,
                                bool return_cell_states, bool recompute) {
  const CudaContext context = current_cuda_context(device_of(input));
  const Layer layer = make_cuda_layer(input, h_0, c_0, weights, lengths, batch_sizes, reset_mask);
  const ForwardTensors tensors(layer, save_for_backward, save_for_backward && !recompute,
                               return_cell_states);
  const cuda::LstmPlan plan = cuda::make_forward_plan(
      layer.shape, layer.dtype, plan_settings(context, save_for_backward, recompute));
  const Tensor workspace = new_workspace(plan.workspace_bytes, layer);

  cuda::LstmForwardCall call;
  call.shape = layer.shape;
  call.dtype = layer.dtype;
  call.lengths = device_lengths(layer);
  call.reset_mask = layer.reset_flags();
  call.x = layer.input.const_data_ptr();
  for (int d = 0; d < layer.shape.directions; ++d) call.direction[d] = tensors.direction(layer, d);
  call.workspace = workspace.mutable_data_ptr();
  call.blas_handle = context.blas_handle;
  call.stream = context.stream;
  cuda::lstm_forward(call, plan);
  return tensors.result();
}

BackwardResult lstm_backward_cuda(
    const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_h_n,
    const std::optional<Tensor>& grad_c_n, const std::optional<Tensor>& grad_cell_states,
    const Tensor& input, const Tensor& h_0, const Tensor& c_0, const std::vector<Tensor>& weights,
    const std::optional<Tensor>& lengths, const std::optional<Tensor>& batch_sizes,
    const std::optional<Tensor>& reset_mask, const Tensor& y, const Tensor& gates,
    const Tensor& cells, bool need_input, bool need_states, bool need_weights) {
  Layer layer = make_cuda_layer(input, h_0, c_0, weights, lengths, batch_sizes, reset_mask);
  // NOTE: the kernels always give the states' gradients, which cost next to nothing.
  BackwardTensors tensors(layer, grad_y, grad_h_n, grad_c_n, grad_cell_states, y, gates, cells,
                          /*need_states=*/true,
                          /*keep_gate_gradients=*/true);
  const Backward backward(std::move(layer), std::move(tensors), need_weights);

  // Turn the gate gradients into those of the input and the weights.
  cuda::GradientCall call = backward.gradient_call();
  const Tensor none = new_tensor({0}, input.scalar_type(), backward.layer.device);
  const Tensor grad_input = need_input ? backward.input_gradient(call) : none;
  std::vector<Tensor> grad_weights;
  if (need_weights) {
    grad_weights = new_weight_gradients(backward.layer);
    for (int d = 0; d < backward.layer.shape.directions; ++d) {
      set_weight_outputs(backward.layer, grad_weights, d, call.direction[d]);
    }
    cuda::weight_gradients(call, backward.blas);
  }
  if (!need_states) return {grad_input, none, none, grad_weights};
  return {grad_input, backward.tensors.grad_h_0, backward.tensors.grad_c_0, grad_weights};
}

GateGradientResult lstm_gate_gradients_cuda(
    const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_h_n,
    const std::optional<Tensor>& grad_c_n, const std::optional<Tensor>& grad_cell_states,
    const Tensor& input, const Tensor& h_0, const Tensor& c_0, const std::vector<Tensor>& weights,
    const std::optional<Tensor>& lengths, const std::optional<Tensor>& batch_sizes,
    const std::optional<Tensor>& reset_mask, const Tensor& y, const Tensor& gates,
    const Tensor& cells) {
  Layer layer = make_cuda_layer(input, h_0, c_0, weights, lengths, batch_sizes, reset_mask);
  BackwardTensors tensors(layer, grad_y, grad_h_n, grad_c_n, grad_cell_states, y, gates, cells,
                          /*need_states=*/true,
                          /*keep_gate_gradients=*/true);
  const Backward backward(std::move(layer), std::move(tensors), /*need_weights=*/true);

  const LstmShape& s = backward.layer.shape;
  const int64_t rows = backward.layer.data_rows;
  const cuda::GradientCall call = backward.gradient_call();
  const Tensor previous =
      new_tensor({s.directions, rows, s.output_size}, input.scalar_type(), backward.layer.device);
  const Tensor x = new_tensor({rows, s.input_size}, input.scalar_type(), backward.layer.device);
  if (rows > 0) {
    cuda::gather_input(call, x.mutable_data_ptr());
    for (int d = 0; d < s.directions; ++d) {
      cuda::gather_h_prev(
          call, d, element(previous, d * rows * s.output_size, dtype_size(backward.layer.dtype)));
    }
  }
  return {backward.input_gradient(call),
          backward.tensors.grad_h_0,
          backward.tensors.grad_c_0,
          backward.tensors.grad_gates,
          previous,
          x,
          backward.tensors.grad_output,
          backward.unprojected};
}

}  // namespace lstm_fused
