// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/direction_weights.h"
#include "cuda/status.h"
#include "cuda/stepwise_backward.cuh"
#include "cuda/stepwise_backward.h"
#include "cuda/workspace.h"

namespace lstm_fused::cuda {
namespace {

// Whether rows of `columns` can be moved `width` elements at a time.
bool can_vectorize(const RecurrenceArgs& args, const BackwardRecurrence& d, int width) {
  const int64_t storage = width * dtype_size(args.dtype);
  return args.shape.hidden_size % width == 0 && args.shape.output_size % width == 0 &&
         is_aligned(d.cells, width * accumulator_size(args.dtype)) && is_aligned(d.c_0, storage) &&
         is_aligned(d.gates, storage) && is_aligned(d.grad_y, storage) &&
         is_aligned(d.grad_h_n, storage) && is_aligned(d.grad_c_n, storage) &&
         is_aligned(d.grad_cell_states, storage) && is_aligned(d.grad_gates, storage) &&
         is_aligned(d.grad_output, storage) && is_aligned(d.grad_h_0, storage) &&
         is_aligned(d.grad_c_0, storage);
}

enum class StepKernel { kOutputGradient, kCell, kInitialGradient };

template <typename Storage, int kWidth>
void launch_step(StepKernel kernel, const BackwardStepArgs& args, int directions,
                 cudaStream_t stream) {
  const int64_t columns = kernel == StepKernel::kCell ? args.hidden_size : args.output_size;
  const RowGrid launch = row_grid(args.batch, columns, kWidth, directions);
  if (launch.empty) return;
  switch (kernel) {
    case StepKernel::kOutputGradient:
      output_gradient_kernel<Storage, kWidth><<<launch.grid, launch.block, 0, stream>>>(args);
      return check_launch("output_gradient_kernel");
    case StepKernel::kCell:
      backward_step_kernel<Storage, kWidth><<<launch.grid, launch.block, 0, stream>>>(args);
      return check_launch("backward_step_kernel");
    case StepKernel::kInitialGradient:
      initial_gradient_kernel<Storage, kWidth><<<launch.grid, launch.block, 0, stream>>>(args);
      return check_launch("initial_gradient_kernel");
  }
}

template <typename Storage>
void run_stepwise_backward(const RecurrenceArgs& args, const BackwardRecurrence* directions,
                           const Blas& blas) {
  const LstmShape& s = args.shape;
  const int count = s.directions;
  const int64_t storage = dtype_size(args.dtype), accumulator = accumulator_size(args.dtype);
  const int64_t gates = kGates * s.hidden_size;
  constexpr int kWidth = kVectorWidth<Accumulator<Storage>>;

  // Lay out the workspace.
  const StepwiseBackwardWorkspace parts = stepwise_backward_workspace(s, args.dtype);
  char* workspace = static_cast<char*>(args.workspace);
  void* recurrent = workspace + parts.recurrent;
  void* grad_hidden = workspace + parts.hidden;
  const void *w_hh_of[kMaxDirections] = {}, *w_hr_of[kMaxDirections] = {};
  bool vectorize = true;
  for (int i = 0; i < count; ++i) {
    w_hh_of[i] = directions[i].w_hh;
    w_hr_of[i] = directions[i].w_hr;
    vectorize = vectorize && can_vectorize(args, directions[i], kWidth);
  }
  const DirectionWeights w_hh(w_hh_of, count, gates * s.output_size, args.dtype,
                              workspace + parts.w_hh, args.stream);
  const DirectionWeights w_hr(w_hr_of, count, s.projection ? s.output_size * s.hidden_size : 0,
                              args.dtype, workspace + parts.w_hr, args.stream);
  const auto launch = [&](StepKernel kernel, const BackwardStepArgs& step_args) {
    if (vectorize) {
      launch_step<Storage, kWidth>(kernel, step_args, count, args.stream);
    } else {
      launch_step<Storage, 1>(kernel, step_args, count, args.stream);
    }
  };

  BackwardStepArgs step_args;
  step_args.steps = s.steps;
  step_args.batch = s.batch;
  step_args.hidden_size = s.hidden_size;
  step_args.output_size = s.output_size;
  step_args.grad_y_stride = count * s.output_size;
  step_args.grad_cell_states_stride = count * s.hidden_size;
  step_args.lengths = args.lengths;
  step_args.reset_mask = args.reset_mask;

  for (int64_t k = 0; k < s.steps; ++k) {
    // Point at the arrays' rows.
    void *gate_rows[kMaxDirections] = {}, *output_rows[kMaxDirections] = {};
    for (int i = 0; i < count; ++i) {
      const BackwardRecurrence& d = directions[i];
      const int64_t t = i == 0 ? s.steps - 1 - k : k;
      const int64_t before = i == 0 ? t - 1 : t + 1;
      const int64_t row = t * s.batch, unit = row * s.hidden_size;
      gate_rows[i] = advance(d.grad_gates, row * gates, storage);
      output_rows[i] = advance(d.grad_output, row * s.output_size, storage);
      BackwardStepDirection& out = step_args.direction[i];
      out.step = t;
      out.later = i == 0 ? t + 1 : t - 1;
      out.gates = advance(d.gates, row * gates, storage);
      out.cells = advance(d.cells, unit, accumulator);
      out.c_prev = k + 1 < s.steps ? advance(d.cells, before * s.batch * s.hidden_size, accumulator)
                                   : nullptr;
      out.c_0 = d.c_0;
      out.grad_y = advance(d.grad_y, row * step_args.grad_y_stride, storage);
      out.grad_h_n = d.grad_h_n;
      out.grad_c_n = d.grad_c_n;
      out.grad_cell_states =
          advance(d.grad_cell_states, row * step_args.grad_cell_states_stride, storage);
      out.dc = advance(workspace + parts.cell, i * s.batch * s.hidden_size, accumulator);
      out.grad_gates = gate_rows[i];
      out.grad_output = output_rows[i];
      out.grad_h_0 = d.grad_h_0;
      out.grad_c_0 = d.grad_c_0;
    }
    step_args.first_call = k == 0;

    // With projection: through W_hr to the cell's output.
    if (s.projection) {
      launch(StepKernel::kOutputGradient, step_args);
      const DirectionOrder order = direction_order(output_rows, count, storage);
      Gemm gemm;
      gemm.m = s.batch;
      gemm.n = s.hidden_size;
      gemm.k = s.output_size;
      gemm.a = {output_rows[order.first], s.output_size, false, order.stride};
      gemm.b = {w_hr.from(order), s.hidden_size, false, s.output_size * s.hidden_size};
      gemm.c = grad_hidden;
      gemm.c_stride = s.hidden_size;
      gemm.c_batch_stride = s.batch * s.hidden_size;
      gemm.c_accumulator = true;
      gemm.batch = count;
      blas.gemm(gemm);
      for (int i = 0; i < count; ++i) {
        step_args.direction[i].grad_hidden =
            advance(grad_hidden, order.element(i) * s.batch * s.hidden_size, accumulator);
      }
    }

    // Through the cell, and through W_hh to the h that entered.
    launch(StepKernel::kCell, step_args);
    const DirectionOrder order = direction_order(gate_rows, count, storage);
    Gemm gemm;
    gemm.m = s.batch;
    gemm.n = s.output_size;
    gemm.k = gates;
    gemm.a = {gate_rows[order.first], gates, false, order.stride};
    gemm.b = {w_hh.from(order), s.output_size, false, gates * s.output_size};
    gemm.c = recurrent;
    gemm.c_stride = s.output_size;
    gemm.c_batch_stride = s.batch * s.output_size;
    gemm.c_accumulator = true;
    gemm.batch = count;
    blas.gemm(gemm);
    for (int i = 0; i < count; ++i) {
      step_args.direction[i].recurrent =
          advance(recurrent, order.element(i) * s.batch * s.output_size, accumulator);
    }
  }

  for (int i = 0; i < count; ++i) step_args.direction[i].later = step_args.direction[i].step;
  launch(StepKernel::kInitialGradient, step_args);
}

}  // namespace

void stepwise_backward(const RecurrenceArgs& args, const BackwardRecurrence* directions,
                       const Blas& blas) {
  dispatch_storage(args.dtype, [&](auto storage) {
    run_stepwise_backward<decltype(storage)>(args, directions, blas);
  });
}

}  // namespace lstm_fused::cuda
