// SPDX-License-Identifier: BSD-3-Clause
// The recurrence of one layer's backward, both directions: backpropagation through time. The result
// does not depend on the number of threads, bit for bit.
#pragma once

#include <memory>
#include <vector>

#include "common/lstm.h"
#include "cpu/gradients/backward_group.h"
#include "cpu/kernels/kernels.h"
#include "cpu/plan.h"
#include "cpu/runtime/team.h"

namespace lstm_fused::cpu {

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
  void store_parameter_gradients() const;

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
