// SPDX-License-Identifier: BSD-3-Clause
// Every status of the CUDA runtime becomes an Error here.
#pragma once

#include <cuda_runtime_api.h>

#include "common/error.h"

namespace lstm_fused::cuda {

inline void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  // NOTE: the runtime keeps an error until it is asked for; the next call's check would find this.
  cudaGetLastError();
  fail(what, " must succeed, got ", cudaGetErrorName(status), ": ", cudaGetErrorString(status));
}

// After a launch: what was wrong with it. Errors of the run itself come up later, where torch asks.
inline void check_launch(const char* kernel) { check_cuda(cudaGetLastError(), kernel); }

}  // namespace lstm_fused::cuda
