// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/lstm_backward.h"

#include "cuda/blas.h"
#include "cuda/persistent/backward.h"
#include "cuda/recurrence.h"
#include "cuda/stepwise/backward.h"

namespace lstm_fused::cuda {

void lstm_backward(const LstmBackwardCall& call, const LstmPlan& plan) {
  const LstmShape& s = call.shape;
  check_shape(s);
  if (s.batch == 0) return;

  const RecurrenceArgs args = recurrence_args(call, plan.allow_tf32, call.workspace);
  if (plan.variant != Variant::kStepwise) {
    return launch_persistent_backward(args, call.direction, plan.persistent);
  }
  const Blas blas(call.blas_handle, call.stream, call.dtype, plan.allow_tf32);
  stepwise_backward(args, call.direction, plan.composite, blas);
}

}  // namespace lstm_fused::cuda
