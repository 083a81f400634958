// SPDX-License-Identifier: BSD-3-Clause
// The forward recurrence in one launch for all steps and directions.
#pragma once

#include "cuda/persistent/plan.h"
#include "cuda/recurrence.h"

namespace lstm_fused::cuda {

// `directions` holds L elements. `plan` comes from can_run_persistent_forward for args.shape, dtype
// and allow_tf32, and args.workspace has plan.workspace_bytes. gates may be where preactivations
// are.
void launch_persistent_forward(const RecurrenceArgs& args, const ForwardRecurrence* directions,
                               const PersistentPlan& plan);

}  // namespace lstm_fused::cuda
