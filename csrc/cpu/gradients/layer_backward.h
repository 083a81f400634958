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
  const void* x = nullptr;               // as in the forward
  const uint8_t* reset_mask = nullptr;   // (T, N) or null
  const CellOptions* options = nullptr;  // of the forward, which has saved its gates; or null
  void* grad_x = nullptr;  // out, as x; null: not wanted; rows past a length are not written
  LayerBackwardDirection direction[kMaxDirections];
};

// The whole backward of a layer: for each of the plan's pieces of some steps, the recurrence, and
// then the gradients of x and the weights, which are products of the gates' gradients. Where there
// are several pieces, the gates' gradients of one stay in a cache, and never exist as a whole: they
// would be the largest array of all. The results do not depend on the number of threads, bit for
// bit.
void layer_backward(const LayerBackwardArgs& args, const LayerBackwardPlan& plan,
                    const Parallel& parallel);

}  // namespace lstm_fused::cpu
