// SPDX-License-Identifier: BSD-3-Clause
// The recurrence of one layer's backward, both directions: backpropagation through time. The result
// does not depend on the number of threads, bit for bit.
#pragma once

#include <memory>
#include <vector>

#include "common/lstm.h"
#include "cpu/kernels/kernels.h"
#include "cpu/plan.h"
#include "cpu/runtime/scratch.h"
#include "cpu/runtime/team.h"

namespace lstm_fused::cpu {

// A direction's next steps, and their rows of data, in memory that need not hold others.
struct BackwardPiece {
  int64_t steps = 0;
  int64_t first_row = 0;        // of the steps' rows of data
  const void* gates = nullptr;  // (rows, 4H) storage
  void* grad_gates = nullptr;   // out (rows, 4H) storage; may be gates
  void* grad_output = nullptr;  // out (rows, P) storage; null without output projection
};

// The weights of the recurrence as its kernels want them; without data where the plan is to read
// them as they are.
struct BackwardWeights {
  PanelMatrix w_hh;  // dh = d(pre-activations)·W_hh
  PanelMatrix w_hr;  // d(o·tanh(c)) = dh·W_hr, with output projection
};

class BackwardGroup;

class LstmBackward {
 public:
  // Packs the weights, unless the plan reads them as they are. `args`, whose gates, grad_gates and
  // grad_output are not used, must outlive this.
  LstmBackward(const LstmBackwardArgs& args, const LstmPlan& plan, const Parallel& parallel);
  ~LstmBackward();

  // The next steps of each direction, in its order; all T at once where rows differ in length.
  // After the last of them the initial states' gradients are there.
  void run(const BackwardPiece (&pieces)[kMaxDirections], const Parallel& parallel);

 private:
  const LstmBackwardArgs& args_;
  const LstmPlan plan_;
  const KernelTable& table_;
  const std::vector<int64_t> lengths_;
  BackwardWeights weights_[kMaxDirections];
  std::vector<std::unique_ptr<BackwardGroup>> groups_;
  int64_t steps_done_[kMaxDirections] = {};
};

// The recurrence of all steps at once.
void lstm_backward(const LstmBackwardArgs& args, const LstmPlan& plan, const Parallel& parallel);

}  // namespace lstm_fused::cpu
