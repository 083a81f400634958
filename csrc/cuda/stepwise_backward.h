// SPDX-License-Identifier: BSD-3-Clause
// The recurrence backwards step by step: for each step one kernel for the cell and one product
// grad_gates·W_hh by cuBLAS, both directions in the same launches. A projection takes one product
// and one kernel more. Any shape and dtype.
#pragma once

#include "cuda/blas.h"
#include "cuda/recurrence.h"

namespace lstm_fused::cuda {

// `directions` holds shape.directions elements. The workspace is as stepwise_backward_workspace
// says.
void stepwise_backward(const RecurrenceArgs& args, const BackwardRecurrence* directions,
                       const Blas& blas);

}  // namespace lstm_fused::cuda
