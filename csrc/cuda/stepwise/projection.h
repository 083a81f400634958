// SPDX-License-Identifier: BSD-3-Clause
// What a projection adds to the stepwise variant before and after the steps, for all steps at once.
// The steps know the cell's output o·tanh(c) alone ("hidden"), and its gradient.
#pragma once

#include "cuda/blas.h"
#include "cuda/recurrence.h"

namespace lstm_fused::cuda {

// After the forward: y and h_n. `hidden` (T, N, L·H) storage, zero past a row's length.
void project_outputs(const RecurrenceArgs& args, const ForwardRecurrence* directions,
                     const void* hidden, const Blas& blas);

// Before the backward: what grad_y and grad_h_n are to the hidden, by W_hr. Those that are null
// leave theirs as it is. grad_hidden (T, N, L·H), grad_last_hidden (L, N, H), both storage.
void unproject_gradients(const RecurrenceArgs& args, const BackwardRecurrence* directions,
                         void* grad_hidden, void* grad_last_hidden, const Blas& blas);

// After the backward: grad_gates·W_hh of all steps, to grad_entering (L, T, N, P) storage.
void entering_gradients(const RecurrenceArgs& args, const BackwardRecurrence* directions,
                        void* grad_entering, const Blas& blas);

// And grad_output and grad_h_0 from it.
void output_gradients(const RecurrenceArgs& args, const BackwardRecurrence* directions,
                      const void* grad_entering);

}  // namespace lstm_fused::cuda
