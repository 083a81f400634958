// SPDX-License-Identifier: BSD-3-Clause
// The output projection, y = W_hr·(o·tanh(c)), and its backward for the stepwise variant: products
// before and after the steps, for all steps at once. The steps know the cell output o·tanh(c)
// alone, and its gradient.
#pragma once

#include "cuda/blas.h"
#include "cuda/recurrence.h"

namespace lstm_fused::cuda {

// After the forward: makes y and h_n. `cell_output` (T, N, L·H) storage, zero past a row's length.
void project_outputs(const RecurrenceArgs& args, const ForwardRecurrence* directions,
                     const void* cell_output, const Blas& blas);

// Before the backward: multiplies grad_y and grad_h_n by W_hr, to grad_cell_output (T, N, L·H) and
// grad_last_cell_output (L, N, H), both storage. A null one leaves its product unwritten.
void cell_output_gradients(const RecurrenceArgs& args, const LstmBackwardDirection* directions,
                           void* grad_cell_output, void* grad_last_cell_output, const Blas& blas);

// After the backward: multiplies grad_gates of all steps by W_hh, to grad_h_prev (L, T, N, P)
// storage.
void h_prev_gradients(const RecurrenceArgs& args, const LstmBackwardDirection* directions,
                      void* grad_h_prev, const Blas& blas);

// After the backward: makes grad_output and grad_h_0 from grad_h_prev.
void output_gradients(const RecurrenceArgs& args, const LstmBackwardDirection* directions,
                      const void* grad_h_prev);

}  // namespace lstm_fused::cuda
