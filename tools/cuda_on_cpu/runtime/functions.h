// SPDX-License-Identifier: BSD-3-Clause
// The kernels and variables that loaded libraries have registered, and the launching of kernels.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "kernel_api.h"

namespace cuda_on_cpu {

// A kernel as the host knows it.
struct HostFunction {
  std::string name;  // mangled
  const void* stub = nullptr;
  void** fat_binary = nullptr;
  int max_dynamic_shared = -1;  // as cudaFuncSetAttribute set it; -1: not set
};

// Null, and the error set, where the host never registered it.
HostFunction* find_function(const void* stub);

struct Translated {
  const Module* module = nullptr;
  const KernelInfo* kernel = nullptr;
};
// The translated kernel for the device's compute capability, from the library of the host function.
// On failure the kernel is null, and the error set.
Translated find_translated(const HostFunction& function);

// How much dynamic shared memory a launch may ask for.
size_t dynamic_shared_limit(const HostFunction& function, const KernelInfo& kernel);

// Checks all that CUDA checks, and submits the grid to the stream: it runs to its end, unless it is
// captured.
cudaError_t launch(const void* stub, dim3 grid, dim3 block, void** arguments,
                   size_t dynamic_shared_bytes, cudaStream_t stream, bool is_cooperative);

}  // namespace cuda_on_cpu
