// SPDX-License-Identifier: BSD-3-Clause
// The device that is emulated: its facts, its memory, its state of error, and the settings of the
// emulation.
#pragma once

#include <driver_types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "kernel_api.h"
#include "memory.h"

namespace cuda_on_cpu {

// Defaults are an H100's, with fewer multiprocessors.
struct Device {
  int64_t sm_count = 8;
  int64_t compute_capability = 90;
  int64_t max_threads_per_sm = 2048;
  int64_t registers_per_sm = 65536;
  int64_t shared_per_sm = 233472;
  int64_t shared_per_block_optin = 232448;
  int64_t reserved_shared_per_block = 1024;
  int64_t l2_bytes = 50 << 20;
  int64_t global_bytes = int64_t(80) << 30;

  int64_t stream_sm_count = 0;     // that streams may use, as a green context's; 0: the device's
  int64_t refuse_cooperative = 0;  // 1: no cooperative launch fits, whatever occupancy says

  int64_t seed = 1;           // of the order of threads; 0: blocks start in order too
  int64_t strict_memory = 0;  // 1: memory that is not registered is an error
  int64_t race_check = 0;     // in checked modules
  int64_t weak_memory = 0;    // in checked modules: 1: stores take their time, and overtake
  int64_t statistics = 0;     // in checked modules
  int64_t mutation = 0;       // the number of one, in checked modules
  // The block of this index, if any, never goes on once it has stored so many words or vectors
  // to global memory by strong stores.
  int64_t stall_block = -1;
  int64_t stall_after = 0;
  // 1: what another stream does as early as it may: while a kernel runs, the source of the last
  // copy from device to device before it, which is done, has all its bits turned round.
  int64_t garble_copied = 0;
  // What %globaltimer gains, at least, when every thread that can run has polled in vain.
  int64_t poll_round_ns = 10000000;

  // Counted until they are set to 0.
  int64_t kernel_launches = 0;
  int64_t gemm_calls = 0;            // of cuBLAS; a batch is one
  std::vector<int> gemm_math_modes;  // that they ran with, by cublasSetMathMode
  int64_t garbled_launches = 0;      // of kernels, beside which memory was turned round

  int64_t nanoseconds = 1000000000;  // that had gone by when the last launch ended
  uint64_t mutation_hits = 0;        // how often the mutation took effect

  Memory memory;
  // The destination of the last copy from device to device, until the next kernel has run.
  char* copied = nullptr;
  size_t copied_bytes = 0;
  // What the last launch that failed had to say. An error of a kernel stays until it is cleared, as
  // CUDA's do; others until they are read.
  cudaError_t error = cudaSuccess;
  bool is_sticky = false;
  std::string error_text;

  std::vector<const Module*> modules;
};

Device& device();

// Records the error, and returns it.
cudaError_t set_error(cudaError_t error, const std::string& text, bool is_sticky = false);

// Blocks of the kernel that fit on one multiprocessor; 0 where none does.
int blocks_per_sm(const KernelInfo& kernel, int threads, size_t dynamic_shared_bytes,
                  size_t dynamic_shared_limit);

}  // namespace cuda_on_cpu
