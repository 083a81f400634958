// SPDX-License-Identifier: BSD-3-Clause
// Every status of the CUDA runtime becomes an Error here.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "common/error.h"

namespace lstm_fused::cuda {

inline void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  // NOTE: the runtime keeps an error until it is asked for; the next call's check would find this.
  cudaGetLastError();
  fail(what, " must succeed, got ", cudaGetErrorName(status), ": ", cudaGetErrorString(status));
}

// A launch that the driver refuses, before any of it has run, for what the device or the stream
// lacks: another kernel may do.
class LaunchRefused : public Error {
 public:
  using Error::Error;
};

// As check_cuda, after a launch of blocks that must be resident together.
inline void check_group_launch(cudaError_t status, const char* kernel) {
  // NOTE: a stream may have fewer SMs than its device, for which the plan is made; so may a process
  // that shares the device. Debuggers and sanitizers take registers.
  if (status != cudaErrorCooperativeLaunchTooLarge && status != cudaErrorNotSupported &&
      status != cudaErrorLaunchOutOfResources) {
    return check_cuda(status, kernel);
  }
  cudaGetLastError();
  throw LaunchRefused(std::string("the driver must launch ") + kernel + ", got " +
                      cudaGetErrorName(status) + ": " + cudaGetErrorString(status));
}

// After a launch: what was wrong with it. Errors of the run itself come up later, where torch asks.
inline void check_launch(const char* kernel) { check_cuda(cudaGetLastError(), kernel); }

}  // namespace lstm_fused::cuda
