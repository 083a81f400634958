// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "common/lstm.h"
#include "cpu/gradients/plan.h"
#include "cpu/runtime/team.h"

namespace lstm_fused::cpu {

// What a layer's backward gets and gives.
struct LayerBackwardArgs {
  LstmShape shape;
  DType dtype = DType::kFloat32;
  const SequenceLayout* layout = nullptr;
  const void* x = nullptr;              // as in the forward
  const uint8_t* reset_mask = nullptr;  // (T, N) or null
  void* grad_x = nullptr;  // out, as x; null: not wanted; rows past a length are not written
  LayerBackwardDirection direction[kMaxDirections];
};

// The whole backward of a layer: the recurrence, and what follows from its gates' gradients, some
// steps at a time as the plan says, so that these gradients, the largest array of all,
// stay in a cache and are never there as a whole. The results do not depend on the number of
// threads, bit for bit.
void layer_backward(const LayerBackwardArgs& args, const LayerBackwardPlan& plan,
                    const Parallel& parallel);

}  // namespace lstm_fused::cpu
