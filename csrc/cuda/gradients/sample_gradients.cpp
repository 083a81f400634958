// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/gradients/sample_gradients.h"

namespace lstm_fused::cuda {

void sample_gradients(const LayerBackwardCall& call, int64_t samples, const LstmPlan& plan) {
  check_samples(call.shape, samples);
  run_layer_backward(call, samples, plan);
}

}  // namespace lstm_fused::cuda
