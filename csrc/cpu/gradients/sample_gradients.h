// SPDX-License-Identifier: BSD-3-Clause
// A layer's backward that gives the weights' gradients of each sample of the batch apart.
#pragma once

#include <cstdint>

#include "cpu/gradients/layer_backward.h"
#include "cpu/runtime/team.h"

namespace lstm_fused::cpu {

// Runs layer_backward with one gradient of each weight for each of B samples, (B, …) in the place
// of (…); all weights' gradients are wanted. Row n of the batch is of sample n % B, and B divides
// N. All steps go together, whatever the plan says of pieces. The results do not depend on the
// number of threads, bit for bit.
void sample_gradients(const LayerBackwardArgs& args, int64_t samples, const LayerBackwardPlan& plan,
                      const Parallel& parallel);

}  // namespace lstm_fused::cpu
