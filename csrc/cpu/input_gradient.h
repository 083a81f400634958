// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "common/lstm.h"
#include "cpu/cpu_features.h"
#include "cpu/team.h"

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
void input_gradient(const InputGradientArgs& args, Isa isa, const Parallel& parallel);

}  // namespace lstm_fused::cpu
