// SPDX-License-Identifier: BSD-3-Clause
// Before a persistent kernel is first used on a device, it is checked there: a small problem, whose
// results must be those of the stepwise variant. That takes some milliseconds, once for each kernel
// in a process.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <string>

#include "cuda/plan.h"

namespace lstm_fused::cuda {

// Gives so many bytes of the device's memory, 256-byte aligned, which stay until the check is over.
using Allocate = std::function<void*(int64_t bytes)>;

// What a check runs on.
struct CheckContext {
  int device = 0;  // the current one
  DeviceFacts facts;
  void* blas_handle = nullptr;  // see Blas
  cudaStream_t stream = nullptr;
  Allocate allocate;
};

// Checks the kernel of a call's plan, and waits for it, if this is its first use on the device.
// `backward`: whether the plan is make_backward_plan's. Nothing happens while the stream is
// captured, nor where LSTM_FUSED_CUDA_CHECK was 0 when this library was loaded.
//
// Gives what is wrong, in a sentence for the user; empty: nothing. The variant is then left out of
// plans for the device, and the call must be planned anew. Throws Error where stepwise fails too,
// where blocks of an earlier call have given up meanwhile (see check_wait_failures), and where
// LSTM_FUSED_CUDA_WAIT_SECONDS is no number of seconds.
std::string check_first_use(const LstmPlan& plan, DType dtype, bool backward,
                            const CheckContext& context);

// Puts "1" or "0" in the place of LSTM_FUSED_CUDA_CHECK; gives the one before. For tests.
std::string set_first_use_checks(const std::string& value);
// Has kernels checked again. For tests.
void forget_checks(int device);

}  // namespace lstm_fused::cuda
