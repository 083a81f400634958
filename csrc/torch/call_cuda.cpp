// SPDX-License-Identifier: BSD-3-Clause
#include "torch/call_cuda.h"

#include "cuda/availability.h"
#include "cuda/blas.h"
#include "cuda/first_use/check.h"
#include "cuda/persistent/wait_failure.h"
#include "torch/warning.h"

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

cuda::LstmPlan plan_once(const CudaContext& context, const CudaLayer& layer,
                         const PlannedCall& call) {
  cuda::PlanSettings settings;
  settings.allow_tf32 = cuda::allows_tf32(context.blas_handle);
  settings.training = call.training;
  settings.recompute = call.recompute;
  settings.choice = cuda::variant_choice();
  settings.cta_refusal = cuda::refusal_of(layer.device.index, cuda::Variant::kPersistentCta);
  settings.group_refusal = cuda::refusal_of(layer.device.index, cuda::Variant::kPersistentGroup);
  settings.facts = context.facts;
  const bool is_forward = call.recurrence == Recurrence::kForward;
  if (call.has_options) {
    const auto plan =
        is_forward ? cuda::make_options_forward_plan : cuda::make_options_backward_plan;
    return plan(layer.shape, layer.dtype, settings, call.has_norms);
  }
  return is_forward ? cuda::make_forward_plan(layer.shape, layer.dtype, settings)
                    : cuda::make_backward_plan(layer.shape, layer.dtype, settings);
}

}  // namespace

CudaContext begin_call(const Device& device) {
  CudaContext context = current_cuda_context(device);
  cuda::check_wait_failures(device.index);
  return context;
}

cuda::LstmPlan make_plan(const CudaContext& context, const CudaLayer& layer,
                         const PlannedCall& call) {
  const cuda::LstmPlan plan = plan_once(context, layer, call);
  std::optional<Tensor> memory;  // of the check, until it is over
  cuda::CheckContext check;
  check.device = layer.device.index;
  check.facts = context.facts;
  check.blas_handle = context.blas_handle;
  check.stream = context.stream;
  check.allocate = [&](int64_t bytes) {
    memory = new_workspace(bytes, layer);
    return memory->mutable_data_ptr();
  };
  const std::string fault =
      cuda::check_first_use(plan, layer.dtype, call.recurrence == Recurrence::kBackward, check);
  if (fault.empty()) return plan;
  warn_user(fault);
  return plan_once(context, layer, call);
}

void leave_out_groups(const CudaLayer& layer, const cuda::LaunchRefused& refusal) {
  if (cuda::refuse_variant(layer.device.index, cuda::Variant::kPersistentGroup, refusal.what())) {
    warn_user("CUDA device " + std::to_string(layer.device.index) + ": " + refusal.what() +
              ". Groups of blocks, which must run together, are off on this device from now on: "
              "calls run stepwise, with right results. A stream or a process with a part of the "
              "device's multiprocessors, a debugger or a sanitizer can be the reason");
  }
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
