// SPDX-License-Identifier: BSD-3-Clause
// Registers the ops on CUDA tensors, and asks torch for what they run on.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "common/error.h"
#include "torch/cuda_context.h"
#include "torch/guard.h"
#include "torch/ops_cuda.h"
#include "torch/unstable_torch.h"

namespace lstm_fused {

CudaContext current_cuda_context(const Device& device) {
  CudaContext context;
  context.device_guard = std::make_shared<torch::stable::accelerator::DeviceGuard>(device.index);
  void* stream = nullptr;
  check_torch(unstable::current_cuda_stream(device.index, &stream), "give its current CUDA stream");
  context.stream = static_cast<cudaStream_t>(stream);
  check_torch(unstable::current_cublas_handle(&context.blas_handle), "give its cuBLAS handle");
  context.facts = cuda::query_device_facts(device.index);
  return context;
}

}  // namespace lstm_fused

STABLE_TORCH_LIBRARY_IMPL(lstm_fused, CUDA, m) {
  m.impl("lstm_forward", TORCH_BOX(&lstm_fused::Guarded<&lstm_fused::lstm_forward_cuda>::call));
  m.impl("lstm_backward", TORCH_BOX(&lstm_fused::Guarded<&lstm_fused::lstm_backward_cuda>::call));
  m.impl("lstm_sample_gradients",
         TORCH_BOX(&lstm_fused::Guarded<&lstm_fused::lstm_sample_gradients_cuda>::call));
  m.impl("lstm_options_forward",
         TORCH_BOX(&lstm_fused::Guarded<&lstm_fused::lstm_options_forward_cuda>::call));
  m.impl("lstm_options_backward",
         TORCH_BOX(&lstm_fused::Guarded<&lstm_fused::lstm_options_backward_cuda>::call));
}
