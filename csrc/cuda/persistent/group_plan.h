// SPDX-License-Identifier: BSD-3-Clause
// Plans of groups of blocks, also where one block could hold all of W_hh. Free of CUDA's headers.
#pragma once

#include <string>

#include "common/lstm.h"
#include "cuda/device_facts.h"
#include "cuda/persistent/plan.h"

namespace lstm_fused::cuda {

// Whether a kernel of groups can take the call: as can_run_persistent_forward and
// can_run_persistent_backward, which prefer one block.
bool can_run_groups(const LstmShape& shape, DType dtype, bool allow_tf32, bool has_options,
                    bool backward, const DeviceFacts& facts, PersistentPlan* plan,
                    std::string* why_not);

}  // namespace lstm_fused::cuda
