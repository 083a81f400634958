// SPDX-License-Identifier: BSD-3-Clause
// The recurrence step by step, both directions in the same launches. For each step the recurrent
// GEMM by cuBLAS adds h_prev·W_hhᵀ onto x·W_ihᵀ, and one kernel is its epilogue, the cell. Any
// shape and dtype.
//
// With projection, h = W_hr·(o·tanh(c)), either W_hh·W_hr is multiplied out before the first step
// ("composite"), and the steps are as without; or a step takes one GEMM more. The output projection
// makes y from all steps' cell outputs o·tanh(c) at the end.
#pragma once

#include "cuda/blas.h"
#include "cuda/recurrence.h"

namespace lstm_fused::cuda {

// `directions` holds L elements. The workspace is as stepwise_forward_workspace says, `training`
// being whether `cells` are asked for. `composite` only with projection.
void stepwise_forward(const RecurrenceArgs& args, const ForwardRecurrence* directions,
                      bool composite, const Blas& blas);

}  // namespace lstm_fused::cuda
