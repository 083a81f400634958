// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <vector>

#include "common/lstm.h"
#include "cpu/cpu_features.h"
#include "cpu/kernels/kernels.h"
#include "cpu/runtime/scratch.h"
#include "cpu/runtime/team.h"

namespace lstm_fused::cpu {

struct InputGradientArgs {
  LstmShape shape;
  DType dtype = DType::kFloat32;
  const SequenceLayout* layout = nullptr;
  const void* grad_gates[kMaxDirections] = {};  // (M, 4H) storage
  const void* w_ih[kMaxDirections] = {};        // (4H, D) storage
  void* grad_x = nullptr;  // out, as x: (T, N, D) or (M, D); rows past a length are not written
};

// grad_x = Σ over directions of grad_gates·W_ih. Not left to a BLAS: there a row's bits depend on
// where it stands among the rows and on the number of threads; here they do not.
class InputGradient {
 public:
  // Packs the weights, unless they are to be read as they are. `args`, whose `grad_gates` are not
  // used, must outlive this.
  InputGradient(const InputGradientArgs& args, Isa isa, bool unpacked, const Parallel& parallel);

  // Panels of nr() columns that the work can be cut into, as well as into rows.
  int64_t panels() const { return panels_; }
  // Rows [begin, end) of data, and of their columns panels [panel_begin, panel_end). grad_gates:
  // each direction's row `begin` and those after it, or null where a direction has no part in this;
  // add: to what is there already.
  void run(int64_t begin, int64_t end, int64_t panel_begin, int64_t panel_end,
           const void* const (&grad_gates)[kMaxDirections], bool add) const;

 private:
  const InputGradientArgs& args_;
  const KernelTable& table_;
  const bool unpacked_;
  const int64_t panels_;
  const std::vector<int64_t> positions_;  // of the rows of data in grad_x; empty: as they come
  PanelMatrix w_ih_[kMaxDirections];
};

// grad_x of all rows, from all directions.
void input_gradient(const InputGradientArgs& args, Isa isa, const Parallel& parallel);

}  // namespace lstm_fused::cpu
