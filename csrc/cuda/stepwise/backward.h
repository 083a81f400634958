// SPDX-License-Identifier: BSD-3-Clause
// The recurrence backwards step by step, both directions in the same launches: for each step one
// kernel for the cell and one product grad_gates·W_hh by cuBLAS. With projection as in the forward:
// one product with W_hh·W_hr ("composite"), or one more; what arrives from outside passes W_hr
// before the first step, for all steps at once. Any shape and dtype.
//
// NOTE: the product has a buffer of its own, which the kernel reads, where the forward's is added
// onto what is there: rows that are reset, or end, must not get it, though their grad_gates are
// wanted as they are; and the gradients from outside may be missing, strided, and of 16 bits. It
// costs no launch, and no more memory traffic.
#pragma once

#include "cuda/blas.h"
#include "cuda/recurrence.h"

namespace lstm_fused::cuda {

// `directions` holds shape.directions elements. The workspace is as stepwise_backward_workspace
// says. `composite` only with projection.
void stepwise_backward(const RecurrenceArgs& args, const BackwardRecurrence* directions,
                       bool composite, const Blas& blas);

}  // namespace lstm_fused::cuda
