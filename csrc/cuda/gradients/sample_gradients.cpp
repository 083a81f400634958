// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/gradients/sample_gradients.h"

#include "common/error.h"

namespace lstm_fused::cuda {

void sample_gradients(const LayerBackwardCall& call, int64_t samples, const LstmPlan& plan) {
  LSTM_CHECK(samples >= 1 && call.shape.batch % samples == 0,
             "samples must be at least 1 and divide N = ", call.shape.batch, ", got ", samples);
  run_layer_backward(call, samples, plan);
}

}  // namespace lstm_fused::cuda
