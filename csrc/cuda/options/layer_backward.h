// SPDX-License-Identifier: BSD-3-Clause
// The whole backward of a layer whose cell has options, as gradients/layer_backward.h is that of
// the plain one. Launches only. The gates must have been saved.
#pragma once

#include "cuda/options/backward.h"

namespace lstm_fused::cuda {

// Bytes of workspace of options_backward. Only whether the call's pointers are null matters.
// `plan`: must be make_options_backward_plan's for this shape, dtype and device.
int64_t options_backward_workspace_bytes(const OptionsBackwardCall& call, const LstmPlan& plan);

void options_backward(const OptionsBackwardCall& call, const LstmPlan& plan);

}  // namespace lstm_fused::cuda
