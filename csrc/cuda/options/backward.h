// SPDX-License-Identifier: BSD-3-Clause
// The recurrence of the backward where the cell has options: by the persistent kernels of
// options/persistent, or step by step, both directions in the same launches: a kernel for the cell
// and one product by W_hh; with projection a kernel and a product by W_hr ahead of them. Any shape
// and dtype.
#pragma once

#include "cuda/blas.h"
#include "cuda/gradients/layer_backward.h"

namespace lstm_fused::cuda {

// direction[].recurrence has the options, and their gradients that are wanted, of `options`. The
// biases' gradients, which with norms are no sums of grad_gates, are options_recurrence's work
// then.
struct OptionsBackwardCall : LayerBackwardCall {
  CellOptions options;
};

// One direction's arrays that hold all steps.
struct OptionRecurrence {
  // out (T, N, 4H) storage, zero where a row takes no part: of the pre-activations; with norms of
  // x·W_ih, and of h_prev·W_hh
  void* grad_gates = nullptr;
  void* grad_recurrent = nullptr;
  void* grad_output = nullptr;  // out (T, N, P) storage, as grad_gates; with projection
  void* cell_output = nullptr;  // out (T, N, H) storage, as grad_gates: what W_hr multiplied; or
                                // null
};

// Two directions' arrays of a name lie one behind the other. `workspace` is as
// options_backward_workspace says. Gradients of options are added up in it, and stored at the end.
void options_recurrence(const OptionsBackwardCall& call, const LstmPlan& plan,
                        const OptionRecurrence* directions, void* workspace, const Blas& blas);

}  // namespace lstm_fused::cuda
