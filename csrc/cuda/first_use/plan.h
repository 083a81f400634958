// SPDX-License-Identifier: BSD-3-Clause
// The small problem on which a persistent kernel is checked before its first use on a device. Pure
// functions, free of CUDA's headers.
#pragma once

#include <optional>

#include "cuda/plan.h"

namespace lstm_fused::cuda {

// The kernels that persistent plans choose from, each instance by itself, are numbered from 0.
constexpr int kPersistentKernels = 128;
// `plan`: a persistent one, for a cell with options or without; `backward`: whether it is
// make_backward_plan's or make_options_backward_plan's.
int kernel_number(const LstmPlan& plan, bool backward);

struct CheckPlan {
  LstmShape shape;
  LstmPlan persistent;         // takes the kernel that is checked
  LstmPlan forward, backward;  // stepwise, of the same shape
};

// For the kernel that `plan` takes on a device of these facts; nothing where no small problem
// would take it there.
std::optional<CheckPlan> make_check_plan(const LstmPlan& plan, DType dtype, bool backward,
                                         const DeviceFacts& facts);

}  // namespace lstm_fused::cuda
