// SPDX-License-Identifier: BSD-3-Clause
// The recurrence step by step: for each step one product h·W_hhᵀ by cuBLAS and one kernel for the
// rest of the cell, both directions in the same launches. A projection takes one product more.
// Any shape and dtype.
#pragma once

#include "cuda/blas.h"
#include "cuda/recurrence.h"

namespace lstm_fused::cuda {

// `directions` holds shape.directions elements. The workspace is as stepwise_forward_workspace
// says, `training` being whether `cells` are asked for.
void stepwise_forward(const RecurrenceArgs& args, const ForwardRecurrence* directions,
                      const Blas& blas);

}  // namespace lstm_fused::cuda
