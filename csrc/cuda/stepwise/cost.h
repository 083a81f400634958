// SPDX-License-Identifier: BSD-3-Clause
// What a step of the stepwise variant costs, in cycles of the SM clock: good enough to compare it
// with a group of blocks, and with projection one product a step with two. Pure functions, free of
// CUDA's headers.
#pragma once

#include <cstdint>

#include "common/lstm.h"
#include "cuda/device_facts.h"

namespace lstm_fused::cuda {

// The cycles of a step of both directions. `composite`: with projection, W_hh·W_hr is multiplied
// out before the first step, so that a step is one product and one kernel; else it is two products
// and one kernel.
int64_t stepwise_cycles(const LstmShape& shape, DType dtype, bool allow_tf32, bool backward,
                        bool composite, const DeviceFacts& facts);

}  // namespace lstm_fused::cuda
