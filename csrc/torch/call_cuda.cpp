// SPDX-License-Identifier: BSD-3-Clause
#include "torch/call_cuda.h"

#include "cuda/persistent/wait_failure.h"

namespace lstm_fused {
namespace {

template <typename Call>
void set_layer(const CudaLayer& layer, const CudaContext& context, Call& call) {
  call.shape = layer.shape;
  call.dtype = layer.dtype;
  call.lengths = layer.lengths_pointer();
  call.reset_mask = layer.reset_flags();
  call.x = layer.input.const_data_ptr();
  call.blas_handle = context.blas_handle;
  call.stream = context.stream;
}

}  // namespace

CudaContext begin_call(const Device& device) {
  CudaContext context = current_cuda_context(device);
  cuda::check_wait_failures(device.index);
  return context;
}

Tensor new_workspace(int64_t bytes, const CudaLayer& layer) {
  return new_tensor({bytes}, ScalarType::Byte, layer.device);
}

void clear_saved(const CudaLayer& layer, const ForwardTensors& tensors) {
  if (!layer.lengths) return;
  fill_with_zeros(tensors.gates);
  fill_with_zeros(tensors.cells);
}

BackwardNeeds with_states(BackwardNeeds needs) {
  needs.states = true;
  return needs;
}

void set_call(const CudaLayer& layer, const ForwardTensors& tensors, const CudaContext& context,
              cuda::LstmForwardCall& call) {
  set_layer(layer, context, call);
  for (int d = 0; d < layer.shape.directions; ++d) call.direction[d] = tensors.direction(layer, d);
}

void set_call(const CudaLayer& layer, const BackwardTensors& tensors, const CudaContext& context,
              cuda::LayerBackwardCall& call) {
  set_layer(layer, context, call);
  call.grad_x = element(tensors.grad_input, 0, 1);
  for (int d = 0; d < layer.shape.directions; ++d) call.direction[d] = tensors.direction(layer, d);
}

BackwardResult needed_result(const CudaLayer& layer, const BackwardTensors& tensors,
                             const BackwardNeeds& needs) {
  if (needs.states) return tensors.result();
  const auto none = [&] { return new_tensor({0}, layer.input.scalar_type(), layer.device); };
  return {tensors.grad_input, none(), none(), tensors.grad_weights};
}

}  // namespace lstm_fused
