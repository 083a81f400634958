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

  BackwardRecurrence directions[kMaxDirections];
  for (int i = 0; i < s.directions; ++i) {
    const LstmBackwardDirection& from = call.direction[i];
    BackwardRecurrence& to = directions[i];
    to.w_hh = from.weights.w_hh;
    to.w_hr = from.weights.w_hr;
    to.c_0 = from.c_0;
    to.gates = from.gates;
    to.cells = from.cells;
    to.grad_y = from.grad_y;
    to.grad_h_n = from.grad_h_n;
    to.grad_c_n = from.grad_c_n;
    to.grad_cell_states = from.grad_cell_states;
    to.grad_gates = from.grad_gates;
    to.grad_output = from.grad_output;
    to.grad_h_0 = from.grad_h_0;
    to.grad_c_0 = from.grad_c_0;
  }

  RecurrenceArgs args;
  args.shape = s;
  args.dtype = call.dtype;
  args.allow_tf32 = plan.allow_tf32;
  args.lengths = call.lengths;
  args.reset_mask = call.reset_mask;
  args.workspace = call.workspace;
  args.stream = call.stream;
  if (plan.variant != Variant::kStepwise) {
    return launch_persistent_backward(args, directions, plan.persistent);
  }
  const Blas blas(call.blas_handle, call.stream, call.dtype, plan.allow_tf32);
  stepwise_backward(args, directions, plan.composite, blas);
}

}  // namespace lstm_fused::cuda
