// SPDX-License-Identifier: BSD-3-Clause
// What a plan must know of the device.
#pragma once

#include <cstdint>

namespace lstm_fused::cuda {

struct DeviceFacts {
  int major = 0;  // compute capability
  int minor = 0;
  int sm_count = 0;              // streaming multiprocessors (SMs)
  int64_t shared_per_sm = 0;     // bytes of shared memory
  int64_t shared_per_block = 0;  // bytes that a block can ask for (opt-in)
  int registers_per_sm = 0;      // of 32 bits
  int max_threads_per_sm = 0;    // resident at once
  int64_t l2_bytes = 0;
};

// Throws Error unless the facts can be those of a device: a plan divides by some of them.
void check_facts(const DeviceFacts& facts);

// Asks the CUDA runtime; `device` is its index there.
DeviceFacts query_device_facts(int device);

}  // namespace lstm_fused::cuda
