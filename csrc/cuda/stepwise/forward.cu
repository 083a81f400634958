// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/direction_weights.h"
#include "cuda/status.h"
#include "cuda/stepwise/forward.cuh"
#include "cuda/stepwise/forward.h"
#include "cuda/stepwise/output_projection.h"
#include "cuda/workspace.h"

namespace lstm_fused::cuda {
namespace {

// Whether rows can be moved `width` elements at a time. With projection the kernel does not touch
// h.
bool can_vectorize(const RecurrenceArgs& args, const ForwardRecurrence& d, int width) {
  const int64_t storage = width * dtype_size(args.dtype);
  const int64_t accumulator = width * accumulator_size(args.dtype);
  const bool is_h_aligned =
      is_aligned(d.h_0, storage) && is_aligned(d.y, storage) && is_aligned(d.h_n, storage);
  return args.shape.hidden_size % width == 0 && (args.shape.projection || is_h_aligned) &&
         is_aligned(d.preactivations, accumulator) && is_aligned(d.bias, accumulator) &&
         is_aligned(d.cells, accumulator) && is_aligned(d.c_0, storage) &&
         is_aligned(d.c_n, storage) && is_aligned(d.cell_states, storage) &&
         is_aligned(d.gates, storage);
}

template <typename Storage, int kWidth>
void launch_forward_step(const ForwardStepArgs& args, int directions, cudaStream_t stream) {
  const RowGrid launch = row_grid(args.batch, args.hidden_size, kWidth, directions);
  if (launch.empty) return;
  forward_step_kernel<Storage, kWidth><<<launch.grid, launch.block, 0, stream>>>(args);
  check_launch("forward_step_kernel");
}

// Writes h_0·W_hhᵀ, which is added at each row's first step, to (L, N, 4H) accumulators. It is not
// made by recurrent_gemm since rows of the reverse direction begin at steps of their own.
void multiply_h_0(const RecurrenceArgs& args, const ForwardRecurrence* directions,
                  void* first_recurrent, const Blas& blas) {
  const LstmShape& s = args.shape;
  const int64_t gates = kGates * s.hidden_size;
  for (int i = 0; i < s.directions; ++i) {
    Gemm gemm;
    gemm.m = s.batch;
    gemm.n = gates;
    gemm.k = s.output_size;
    gemm.a = {directions[i].h_0, s.output_size};
    gemm.b = {directions[i].w_hh, s.output_size, true};
    gemm.c = advance(first_recurrent, i * s.batch * gates, accumulator_size(args.dtype));
    gemm.c_stride = gates;
    gemm.c_accumulator = true;
    blas.gemm(gemm);
  }
}

// Adds h_prev·W_hhᵀ to the pre-activations of steps t. Where two products are needed, the first one
// makes `h_prev` (L, N, P) storage from the steps' prev_cell_output; else prev_cell_output is
// h_prev, or W_hh is W_hh·W_hr.
void recurrent_gemm(const LstmShape& s, DType dtype, const RecurrentWeights& weights,
                    const void* prev_cell_output, void* h_prev, const int64_t* t,
                    void* preactivations, const Blas& blas) {
  const int64_t gates = kGates * s.hidden_size;
  const void* operand = prev_cell_output;
  if (weights.w_hr != nullptr) {
    Gemm gemm;
    gemm.m = s.batch;
    gemm.n = s.output_size;
    gemm.k = s.hidden_size;
    gemm.a = {prev_cell_output, s.hidden_size, false, s.batch * s.hidden_size};
    gemm.b = {weights.w_hr, s.hidden_size, true, s.output_size * s.hidden_size};
    gemm.c = h_prev;
    gemm.c_stride = s.output_size;
    gemm.c_batch_stride = s.batch * s.output_size;
    gemm.batch = s.directions;
    blas.gemm(gemm);
    operand = h_prev;
  }
  Gemm gemm;
  gemm.m = s.batch;
  gemm.n = gates;
  gemm.k = weights.columns;
  gemm.a = {operand, weights.columns, false, s.batch * weights.columns};
  gemm.b = {weights.w_hh, weights.columns, true, gates * weights.columns};
  gemm.c = advance(preactivations, t[0] * s.batch * gates, accumulator_size(dtype));
  gemm.c_stride = gates;
  gemm.c_batch_stride = direction_stride(s, t, gates);
  gemm.c_accumulator = true;
  gemm.beta = 1;
  gemm.batch = s.directions;
  blas.gemm(gemm);
}

template <typename Storage>
void run_stepwise_forward(const RecurrenceArgs& args, const ForwardRecurrence* directions,
                          bool composite, const Blas& blas) {
  const LstmShape& s = args.shape;
  const int count = s.directions;
  const int64_t storage = dtype_size(args.dtype), accumulator = accumulator_size(args.dtype);
  const int64_t gates = kGates * s.hidden_size;
  const bool training = directions[0].cells != nullptr;
  constexpr int kWidth = kVectorWidth<Accumulator<Storage>>;

  // Lay out the workspace.
  const StepwiseForwardWorkspace parts =
      stepwise_forward_workspace(s, args.dtype, training, composite);
  char* workspace = static_cast<char*>(args.workspace);
  void* prev_cell_output = workspace + parts.prev_cell_output;
  void* first_recurrent = workspace + parts.first_recurrent;
  const void *w_hh_of[kMaxDirections] = {}, *w_hr_of[kMaxDirections] = {};
  void* cell_output_of[kMaxDirections] = {};
  bool vectorize = true;
  for (int i = 0; i < count; ++i) {
    w_hh_of[i] = directions[i].w_hh;
    w_hr_of[i] = directions[i].w_hr;
    cell_output_of[i] = s.projection
                            ? advance(workspace + parts.cell_output, i * s.hidden_size, storage)
                            : directions[i].y;
    vectorize = vectorize && can_vectorize(args, directions[i], kWidth);
  }
  const RecurrentWeights weights =
      recurrent_weights(s, args.dtype, w_hh_of, w_hr_of, composite, workspace + parts.w_hh,
                        workspace + parts.w_hr, args.stream, blas);
  multiply_h_0(args, directions, first_recurrent, blas);

  for (int64_t step = 0; step < s.steps; ++step) {
    const int64_t t[] = {step, s.steps - 1 - step}, t_prev[] = {step - 1, s.steps - step};
    const bool last_step = step == s.steps - 1;
    if (step > 0) {
      recurrent_gemm(s, args.dtype, weights, prev_cell_output, workspace + parts.h_prev, t,
                     directions[0].preactivations, blas);
    }

    // Run the cells.
    ForwardStepArgs step_args;
    step_args.steps = s.steps;
    step_args.batch = s.batch;
    step_args.hidden_size = s.hidden_size;
    step_args.cell_output_stride = count * s.hidden_size;
    step_args.first_step = step == 0;
    step_args.lengths = args.lengths;
    step_args.reset_mask = args.reset_mask;
    for (int i = 0; i < count; ++i) {
      const ForwardRecurrence& d = directions[i];
      const int64_t row = t[i] * s.batch, unit = row * s.hidden_size;
      const int64_t state = i * s.batch * s.hidden_size;
      ForwardStepDirection& out = step_args.direction[i];
      out.step = t[i];
      out.next = i == 0 ? t[i] + 1 : t[i] - 1;
      out.preactivations = advance(d.preactivations, row * gates, accumulator);
      out.bias = d.bias;
      out.first_recurrent = advance(first_recurrent, i * s.batch * gates, accumulator);
      out.c_0 = d.c_0;
      if (training) {
        // NOTE: out of range at the first step, where no row reads it.
        out.c_prev =
            step > 0 ? advance(d.cells, t_prev[i] * s.batch * s.hidden_size, accumulator) : nullptr;
        out.c = advance(d.cells, unit, accumulator);
      } else {
        out.c = advance(workspace + parts.cell, state, accumulator);
        out.c_prev = out.c;
      }
      out.cell_output = advance(cell_output_of[i], unit * count, storage);
      out.prev_cell_output = last_step ? nullptr : advance(prev_cell_output, state, storage);
      if (!s.projection) {
        out.h_0 = d.h_0;
        out.h_n = d.h_n;
      }
      out.c_n = d.c_n;
      out.cell_states = advance(d.cell_states, unit * count, storage);
      out.gates = advance(d.gates, row * gates, storage);
    }
    if (vectorize) {
      launch_forward_step<Storage, kWidth>(step_args, count, args.stream);
    } else {
      launch_forward_step<Storage, 1>(step_args, count, args.stream);
    }
  }
  if (s.projection) project_outputs(args, directions, workspace + parts.cell_output, blas);
}

}  // namespace

void stepwise_forward(const RecurrenceArgs& args, const ForwardRecurrence* directions,
                      bool composite, const Blas& blas) {
  dispatch_storage(args.dtype, [&](auto storage) {
    run_stepwise_forward<decltype(storage)>(args, directions, composite, blas);
  });
}

}  // namespace lstm_fused::cuda
