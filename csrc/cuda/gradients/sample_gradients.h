// SPDX-License-Identifier: BSD-3-Clause
// A layer's backward that gives the weights' gradients of each sample of the batch apart.
#pragma once

#include <cstdint>

#include "cuda/gradients/layer_backward.h"

namespace lstm_fused::cuda {

// Runs layer_backward with one gradient of each weight for each of B samples, (B, …) in the place
// of (…); all weights' gradients are wanted. Row n of the batch is of sample n % B, and B divides
// N.
void sample_gradients(const LayerBackwardCall& call, int64_t samples, const LstmPlan& plan);

}  // namespace lstm_fused::cuda
