// SPDX-License-Identifier: BSD-3-Clause
// The backward recurrence in one launch for all steps and directions.
#pragma once

#include "cuda/persistent/plan.h"
#include "cuda/recurrence.h"

namespace lstm_fused::cuda {

// `directions` holds L elements, with M = T·N; see recurrence.h. `plan` comes from
// can_run_persistent_backward for args.shape, dtype and allow_tf32, and args.workspace has
// plan.workspace_bytes.
void launch_persistent_backward(const RecurrenceArgs& args, const LstmBackwardDirection* directions,
                                const PersistentPlan& plan);

}  // namespace lstm_fused::cuda
