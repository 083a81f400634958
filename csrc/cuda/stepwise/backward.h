// SPDX-License-Identifier: BSD-3-Clause
// Backpropagation through time step by step, both directions in the same launches: for each step
// one kernel for the cell and one product grad_gates·W_hh by cuBLAS. With projection as in the
// forward: one product with W_hh·W_hr ("composite"), or one more; grad_y and grad_h_n are
// multiplied by W_hr before the first step, for all steps at once. Any shape and dtype.
//
// NOTE: the product has a buffer of its own, which the kernel reads, where the forward's is added
// onto the pre-activations: rows that are reset, or end, must not get it, though their grad_gates
// are wanted as they are; and grad_y may be missing, strided, and of 16 bits. The buffer costs no
// launch, and no more memory traffic.
#pragma once

#include "cuda/blas.h"
#include "cuda/recurrence.h"

namespace lstm_fused::cuda {

// `directions` holds L elements; see recurrence.h. The workspace is as stepwise_backward_workspace
// says. `composite` only with projection.
void stepwise_backward(const RecurrenceArgs& args, const LstmBackwardDirection* directions,
                       bool composite, const Blas& blas);

}  // namespace lstm_fused::cuda
