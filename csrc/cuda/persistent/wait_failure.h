// SPDX-License-Identifier: BSD-3-Clause
// What the host learns of a group of blocks that stopped waiting: see exchange.cuh. Its outputs are
// NaN from that step on, and the next call on the device reports it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/lstm.h"

namespace lstm_fused::cuda {

// How long a block waits for another one. Blocks that run wait for microseconds; a debugger or
// another process on the device may hold them up for longer.
constexpr uint64_t kWaitLimit = 10'000'000'000;  // nanoseconds

// A launch of a group kernel: its number, and where in the device's view of the host's memory it
// leaves {number, group, block, step} where a wait has ended.
struct LaunchRecord {
  uint32_t launch = 0;
  uint4* failure = nullptr;
};

// For a launch that is about to begin on the current device. `what`: a kernel's name, which must
// live on.
LaunchRecord record_launch(const char* what, const LstmShape& shape);

// Throws Error where a group of an earlier launch on the current device has stopped waiting, once.
void check_wait_failures();

}  // namespace lstm_fused::cuda
