// SPDX-License-Identifier: BSD-3-Clause
// What the CUDA ops take from torch, and nothing else of it: torch's current stream on the input's
// device, and its cuBLAS handle there.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>

#include "cuda/device_facts.h"
#include "torch/tensors.h"

namespace lstm_fused {

struct CudaContext {
  std::shared_ptr<void> device_guard;  // the device is the current one while this lives
  cudaStream_t stream = nullptr;
  void* blas_handle = nullptr;  // set to the stream, and to torch's TF32 setting
  cuda::DeviceFacts facts;
};

// Defined beside the registration of the ops.
CudaContext current_cuda_context(const Device& device);

}  // namespace lstm_fused
