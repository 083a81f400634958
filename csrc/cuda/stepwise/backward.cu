// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/direction_weights.h"
#include "cuda/status.h"
#include "cuda/stepwise/backward.cuh"
#include "cuda/stepwise/backward.h"
#include "cuda/stepwise/output_projection.h"
#include "cuda/workspace.h"

namespace lstm_fused::cuda {
namespace {

// Whether rows can be moved `width` elements at a time. With projection the kernels do not touch h.
bool can_vectorize(const RecurrenceArgs& args, const LstmBackwardDirection& d, int width) {
  const int64_t storage = width * dtype_size(args.dtype);
  const bool is_h_aligned = is_aligned(d.grad_y, storage) && is_aligned(d.grad_h_n, storage) &&
                            is_aligned(d.grad_h_0, storage);
  return args.shape.hidden_size % width == 0 && (args.shape.projection || is_h_aligned) &&
         is_aligned(d.cells, width * accumulator_size(args.dtype)) && is_aligned(d.c_0, storage) &&
         is_aligned(d.gates, storage) && is_aligned(d.grad_c_n, storage) &&
         is_aligned(d.grad_cell_states, storage) && is_aligned(d.grad_gates, storage) &&
         is_aligned(d.grad_c_0, storage);
}

enum class StepKernel { kCell, kInitialGradient };

template <typename Storage, int kWidth>
void launch_step(StepKernel kernel, const BackwardStepArgs& args, int directions,
                 cudaStream_t stream) {
  const RowGrid launch = row_grid(args.batch, args.hidden_size, kWidth, directions);
  if (launch.empty) return;
  switch (kernel) {
    case StepKernel::kCell:
      backward_step_kernel<Storage, kWidth><<<launch.grid, launch.block, 0, stream>>>(args);
      return check_launch("backward_step_kernel");
    case StepKernel::kInitialGradient:
      initial_gradient_kernel<Storage, kWidth><<<launch.grid, launch.block, 0, stream>>>(args);
      return check_launch("initial_gradient_kernel");
  }
}

// Multiplies grad_gates of steps t back to the cell outputs of the steps before: to `recurrent`
// (L, N, H) accumulators. Where that takes two products, the first one makes the gradient of
// h_prev, in grad_h_prev (L, T, N, P) storage; `to_cell_output`: the second is wanted too.
void multiply_grad_gates(const LstmShape& s, DType dtype, const RecurrentWeights& weights,
                         const void* grad_gates, void* grad_h_prev, void* recurrent,
                         bool to_cell_output, const int64_t* t, const Blas& blas) {
  const int64_t gates = kGates * s.hidden_size, storage = dtype_size(dtype);
  const bool two_products = weights.w_hr != nullptr;
  Gemm gemm;
  gemm.m = s.batch;
  gemm.n = weights.columns;
  gemm.k = gates;
  gemm.a = {advance(grad_gates, t[0] * s.batch * gates, storage), gates, false,
            direction_stride(s, t, gates)};
  gemm.b = {weights.w_hh, weights.columns, false, gates * weights.columns};
  gemm.c = two_products ? advance(grad_h_prev, t[0] * s.batch * s.output_size, storage) : recurrent;
  gemm.c_stride = weights.columns;
  gemm.c_batch_stride =
      two_products ? direction_stride(s, t, s.output_size) : s.batch * weights.columns;
  gemm.c_accumulator = !two_products;
  gemm.batch = s.directions;
  blas.gemm(gemm);
  if (!two_products || !to_cell_output) return;

  Gemm second;
  second.m = s.batch;
  second.n = s.hidden_size;
  second.k = s.output_size;
  second.a = {gemm.c, gemm.c_stride, false, gemm.c_batch_stride};
  second.b = {weights.w_hr, s.hidden_size, false, s.output_size * s.hidden_size};
  second.c = recurrent;
  second.c_stride = s.hidden_size;
  second.c_batch_stride = s.batch * s.hidden_size;
  second.c_accumulator = true;
  second.batch = s.directions;
  blas.gemm(second);
}

template <typename Storage>
void run_stepwise_backward(const RecurrenceArgs& args, const LstmBackwardDirection* directions,
                           bool composite, const Blas& blas) {
  const LstmShape& s = args.shape;
  const int count = s.directions;
  const int64_t storage = dtype_size(args.dtype), accumulator = accumulator_size(args.dtype);
  const int64_t gates = kGates * s.hidden_size, states = s.batch * s.hidden_size;
  constexpr int kWidth = kVectorWidth<Accumulator<Storage>>;

  // Lay out the workspace.
  const StepwiseBackwardWorkspace parts = stepwise_backward_workspace(s, args.dtype, composite);
  char* workspace = static_cast<char*>(args.workspace);
  void* recurrent = workspace + parts.recurrent;
  void* grad_h_prev = workspace + parts.grad_h_prev;
  const void *w_hh_of[kMaxDirections] = {}, *w_hr_of[kMaxDirections] = {};
  bool vectorize = true;
  for (int i = 0; i < count; ++i) {
    w_hh_of[i] = directions[i].weights.w_hh;
    w_hr_of[i] = directions[i].weights.w_hr;
    vectorize = vectorize && can_vectorize(args, directions[i], kWidth);
  }
  const RecurrentWeights weights =
      recurrent_weights(s, args.dtype, w_hh_of, w_hr_of, composite, workspace + parts.w_hh,
                        workspace + parts.w_hr, args.stream, blas);
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
  step_args.cell_output_stride = count * s.hidden_size;
  step_args.lengths = args.lengths;
  step_args.reset_mask = args.reset_mask;

  // Turn grad_y and grad_h_n into gradients of the cell outputs.
  const void *grad_cell_output[kMaxDirections] = {}, *grad_last_cell_output[kMaxDirections] = {};
  if (s.projection) {
    cell_output_gradients(args, directions, workspace + parts.grad_cell_output,
                          workspace + parts.grad_last_cell_output, blas);
  }
  for (int i = 0; i < count; ++i) {
    const LstmBackwardDirection& d = directions[i];
    grad_cell_output[i] = d.grad_y;
    grad_last_cell_output[i] = d.grad_h_n;
    if (!s.projection) continue;
    if (d.grad_y != nullptr) {
      grad_cell_output[i] = advance(workspace + parts.grad_cell_output, i * s.hidden_size, storage);
    }
    if (d.grad_h_n != nullptr) {
      grad_last_cell_output[i] =
          advance(workspace + parts.grad_last_cell_output, i * states, storage);
    }
  }

  for (int64_t k = 0; k < s.steps; ++k) {
    const int64_t t[] = {s.steps - 1 - k, k}, later[] = {t[0] + 1, t[1] - 1};
    const int64_t before[] = {t[0] - 1, t[1] + 1};
    const bool last_call = k == s.steps - 1;

    // Differentiate the cells.
    step_args.first_call = k == 0;
    for (int i = 0; i < count; ++i) {
      const LstmBackwardDirection& d = directions[i];
      const int64_t row = t[i] * s.batch, unit = row * s.hidden_size;
      BackwardStepDirection& out = step_args.direction[i];
      out.step = t[i];
      out.later = later[i];
      out.gates = advance(d.gates, row * gates, storage);
      out.cells = advance(d.cells, unit, accumulator);
      // NOTE: out of range at the last call, where no row reads it.
      out.c_prev = last_call ? nullptr : advance(d.cells, before[i] * states, accumulator);
      out.c_0 = d.c_0;
      out.grad_cell_output = advance(grad_cell_output[i], unit * count, storage);
      out.grad_last_cell_output = grad_last_cell_output[i];
      out.grad_c_n = d.grad_c_n;
      out.grad_cell_states = advance(d.grad_cell_states, unit * count, storage);
      out.recurrent = advance(recurrent, i * states, accumulator);
      out.dc = advance(workspace + parts.cell, i * states, accumulator);
      out.grad_gates = advance(d.grad_gates, row * gates, storage);
      out.grad_h_0 = s.projection ? nullptr : d.grad_h_0;
      out.grad_c_0 = d.grad_c_0;
    }
    launch(StepKernel::kCell, step_args);

    // Multiply back to the steps before. NOTE: with projection, grad_h_0 is not made of the
    // gradient of the cell output.
    if (composite && last_call) break;
    multiply_grad_gates(s, args.dtype, weights, directions[0].grad_gates, grad_h_prev, recurrent,
                        !last_call, t, blas);
  }

  // Make grad_output and grad_h_0.
  if (s.projection) {
    if (composite) h_prev_gradients(args, directions, grad_h_prev, blas);
    return output_gradients(args, directions, grad_h_prev);
  }
  for (int i = 0; i < count; ++i) step_args.direction[i].later = step_args.direction[i].step;
  launch(StepKernel::kInitialGradient, step_args);
}

}  // namespace

void stepwise_backward(const RecurrenceArgs& args, const LstmBackwardDirection* directions,
                       bool composite, const Blas& blas) {
  dispatch_storage(args.dtype, [&](auto storage) {
    run_stepwise_backward<decltype(storage)>(args, directions, composite, blas);
  });
}

}  // namespace lstm_fused::cuda
