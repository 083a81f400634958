// SPDX-License-Identifier: BSD-3-Clause
// What the host learns of a group of blocks that stopped waiting: see exchange.cuh. Its outputs are
// NaN from that step on. The host finds out at the next call on the device, or where it asks.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

#include "common/lstm.h"

namespace lstm_fused::cuda {

// How long a block waits for another one, in nanoseconds: what LSTM_FUSED_CUDA_WAIT_SECONDS said
// when this library was loaded, or 10 seconds. Throws Error unless that was a number from 0.001 to
// 1e6. NOTE: blocks that run wait for microseconds, but a debugger, or another process on the
// device, may hold them up for longer.
uint64_t wait_limit();

// Puts a number of seconds in the variable's place; gives the one before. For tests.
double set_wait_seconds(double seconds);

// A launch of a group kernel: its number, and where in the device's view of the host's memory it
// leaves {number, group, block, step} where a wait has ended.
struct LaunchRecord {
  uint32_t launch = 0;
  uint4* failure = nullptr;
};

// For a launch that is about to begin on the current device. `what`: a kernel's name, which must
// live on.
LaunchRecord record_launch(const char* what, const LstmShape& shape);

// What was wrong where a group of an earlier launch on the device has stopped waiting; else empty.
// Tells it once. Waits for nothing.
std::string take_wait_failure(int device);

// Throws Error with it, and leaves groups of blocks out of later plans for the device.
void check_wait_failures(int device);

}  // namespace lstm_fused::cuda
