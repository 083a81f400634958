// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <vector>

#include "common/lstm.h"
#include "cpu/kernels/kernels.h"
#include "cpu/plan.h"
#include "cpu/rows.h"
#include "cpu/runtime/scratch.h"
#include "cpu/runtime/team.h"

namespace lstm_fused::cpu {

// Computes a forward's activated gates from the states that it gave: products over many rows of
// data, since every step's h_prev is known. `plan` is make_forward_plan's; with it the gates have
// the forward's bits.
class GateRebuilder {
 public:
  // Packs the weights. `args`, whose `gates` are not used, must outlive this.
  GateRebuilder(const LstmGatesArgs& args, const LstmPlan& plan, const Parallel& parallel);

  // gates (end - begin, 4H) = those of a direction's rows [begin, end) of data.
  void run(int direction, int64_t begin, int64_t end, void* gates, const Parallel& parallel) const;

 private:
  // The weights as the plan wants them, and where the rows of the operands stand.
  struct Direction {
    PanelMatrix w_ih, w_hh;
    Buffer bias;  // gate order
    RowPointers h_prev;
  };

  void run_rows(int direction, int64_t begin, int64_t end, void* gates) const;
  Rows gather(const void* const* from, int64_t count, int64_t size, Buffer& data) const;

  const LstmGatesArgs& args_;
  const LstmPlan plan_;
  const KernelTable& table_;
  const std::vector<char> zeros_;  // a state
  RowPointers x_;
  Direction directions_[kMaxDirections];
};

// The gates of all rows of all directions.
void rebuild_gates(const LstmGatesArgs& args, const LstmPlan& plan, const Parallel& parallel);

}  // namespace lstm_fused::cpu
