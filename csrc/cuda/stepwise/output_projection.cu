// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/device/row_grid.cuh"
#include "cuda/device/storage.cuh"
#include "cuda/direction_weights.h"
#include "cuda/status.h"
#include "cuda/stepwise/output_projection.h"

namespace lstm_fused::cuda {
namespace {

// ---- Forward ----

struct FinalOutputArgs {
  int64_t steps = 0, batch = 0, output_size = 0, y_stride = 0;
  const int64_t* lengths = nullptr;
  const void* h_0[kMaxDirections] = {};
  const void* y[kMaxDirections] = {};
  void* h_n[kMaxDirections] = {};
};

// Copies h_n from y at each row's last step.
template <typename Storage>
__global__ void __launch_bounds__(kRowThreads)
    final_output_kernel(const __grid_constant__ FinalOutputArgs args) {
  const int64_t n = grid_row(), p = grid_column<1>();
  if (n >= args.batch || p >= args.output_size) return;
  const bool reverse = blockIdx.z == 1;
  const auto* h_0 = static_cast<const Storage*>(reverse ? args.h_0[1] : args.h_0[0]);
  const auto* y = static_cast<const Storage*>(reverse ? args.y[1] : args.y[0]);
  auto* h_n = static_cast<Storage*>(reverse ? args.h_n[1] : args.h_n[0]);
  const int64_t length = row_length(args.lengths, n, args.steps);
  const int64_t last = reverse ? 0 : length - 1;
  const int64_t unit = n * args.output_size + p;
  h_n[unit] = length == 0 ? h_0[unit] : y[(last * args.batch + n) * args.y_stride + p];
}

template <typename Storage>
void launch_final_output(const RecurrenceArgs& args, const ForwardRecurrence* directions) {
  const LstmShape& s = args.shape;
  FinalOutputArgs out;
  out.steps = s.steps;
  out.batch = s.batch;
  out.output_size = s.output_size;
  out.y_stride = s.directions * s.output_size;
  out.lengths = args.lengths;
  for (int i = 0; i < s.directions; ++i) {
    out.h_0[i] = directions[i].h_0;
    out.y[i] = directions[i].y;
    out.h_n[i] = directions[i].h_n;
  }
  const RowGrid launch = row_grid(s.batch, s.output_size, 1, s.directions);
  if (launch.empty) return;
  final_output_kernel<Storage><<<launch.grid, launch.block, 0, args.stream>>>(out);
  check_launch("final_output_kernel");
}

// ---- Backward ----

struct OutputGradientDirection {
  const void* grad_y = nullptr;
  const void* grad_h_n = nullptr;
  const void* grad_h_prev = nullptr;  // (T, N, P) storage: each step's gradient of its h_prev
  void* grad_output = nullptr;
  void* grad_h_0 = nullptr;
};

struct OutputGradientArgs {
  int64_t steps = 0, batch = 0, output_size = 0, grad_y_stride = 0;
  const int64_t* lengths = nullptr;
  const uint8_t* reset_mask = nullptr;
  OutputGradientDirection direction[kMaxDirections];
};

// A thread takes one element of a row of (T, N).
template <typename Storage>
__global__ void __launch_bounds__(kRowThreads)
    output_gradient_kernel(const __grid_constant__ OutputGradientArgs args) {
  const int64_t row = grid_row(), p = grid_column<1>();
  if (row >= args.steps * args.batch || p >= args.output_size) return;
  const bool reverse = blockIdx.z == 1;
  const OutputGradientDirection d = reverse ? args.direction[1] : args.direction[0];
  const int64_t t = row / args.batch, n = row % args.batch;
  const int64_t length = row_length(args.lengths, n, args.steps);
  const int64_t unit = row * args.output_size + p, state = n * args.output_size + p;

  // Add up grad_y, grad_h_n at the row's last step, and the gradient from the step after.
  Values<Storage, 1> dh;
  if (t < length) {
    const int64_t later = reverse ? t - 1 : t + 1;
    if (t == (reverse ? 0 : length - 1)) {
      if (d.grad_h_n != nullptr) dh = load<Storage, 1>(d.grad_h_n, state);
    } else if (!is_reset(args.reset_mask, later, n, args.batch)) {
      dh = load<Storage, 1>(d.grad_h_prev, (later * args.batch + n) * args.output_size + p);
    }
    if (d.grad_y != nullptr) dh[0] += load<Storage, 1>(d.grad_y, row * args.grad_y_stride + p)[0];
  }
  store<Storage>(d.grad_output, unit, dh);

  // The h_prev of the row's first step is h_0; without any step h_n is h_0.
  Values<Storage, 1> dh_0;
  if (length == 0 && t == 0) {
    if (d.grad_h_n != nullptr) dh_0 = load<Storage, 1>(d.grad_h_n, state);
  } else if (t != (reverse ? length - 1 : 0)) {
    return;
  } else if (!is_reset(args.reset_mask, t, n, args.batch)) {
    dh_0 = load<Storage, 1>(d.grad_h_prev, unit);
  }
  store<Storage>(d.grad_h_0, state, dh_0);
}

// c = a·W_hr, (rows, P) times (P, H), in rows of `c_stride` elements of storage.
void multiply_by_w_hr(const Blas& blas, const LstmShape& s, int64_t rows, const void* a,
                      int64_t a_stride, const void* w_hr, void* c, int64_t c_stride) {
  Gemm gemm;
  gemm.m = rows;
  gemm.n = s.hidden_size;
  gemm.k = s.output_size;
  gemm.a = {a, a_stride};
  gemm.b = {w_hr, s.hidden_size};
  gemm.c = c;
  gemm.c_stride = c_stride;
  blas.gemm(gemm);
}

}  // namespace

void project_outputs(const RecurrenceArgs& args, const ForwardRecurrence* directions,
                     const void* cell_output, const Blas& blas) {
  const LstmShape& s = args.shape;
  for (int i = 0; i < s.directions; ++i) {
    Gemm gemm;
    gemm.m = s.steps * s.batch;
    gemm.n = s.output_size;
    gemm.k = s.hidden_size;
    gemm.a = {advance(cell_output, i * s.hidden_size, dtype_size(args.dtype)),
              s.directions * s.hidden_size};
    gemm.b = {directions[i].w_hr, s.hidden_size, true};
    gemm.c = directions[i].y;
    gemm.c_stride = s.directions * s.output_size;
    blas.gemm(gemm);
  }
  dispatch_storage(args.dtype,
                   [&](auto storage) { launch_final_output<decltype(storage)>(args, directions); });
}

void cell_output_gradients(const RecurrenceArgs& args, const LstmBackwardDirection* directions,
                           void* grad_cell_output, void* grad_last_cell_output, const Blas& blas) {
  const LstmShape& s = args.shape;
  const int64_t storage = dtype_size(args.dtype);
  for (int i = 0; i < s.directions; ++i) {
    const LstmBackwardDirection& d = directions[i];
    if (d.grad_y != nullptr) {
      multiply_by_w_hr(blas, s, s.steps * s.batch, d.grad_y, s.directions * s.output_size,
                       d.weights.w_hr, advance(grad_cell_output, i * s.hidden_size, storage),
                       s.directions * s.hidden_size);
    }
    if (d.grad_h_n != nullptr) {
      multiply_by_w_hr(blas, s, s.batch, d.grad_h_n, s.output_size, d.weights.w_hr,
                       advance(grad_last_cell_output, i * s.batch * s.hidden_size, storage),
                       s.hidden_size);
    }
  }
}

void h_prev_gradients(const RecurrenceArgs& args, const LstmBackwardDirection* directions,
                      void* grad_h_prev, const Blas& blas) {
  const LstmShape& s = args.shape;
  const int64_t rows = s.steps * s.batch;
  for (int i = 0; i < s.directions; ++i) {
    Gemm gemm;
    gemm.m = rows;
    gemm.n = s.output_size;
    gemm.k = kGates * s.hidden_size;
    gemm.a = {directions[i].grad_gates, gemm.k};
    gemm.b = {directions[i].weights.w_hh, s.output_size};
    gemm.c = advance(grad_h_prev, i * rows * s.output_size, dtype_size(args.dtype));
    gemm.c_stride = s.output_size;
    blas.gemm(gemm);
  }
}

void output_gradients(const RecurrenceArgs& args, const LstmBackwardDirection* directions,
                      const void* grad_h_prev) {
  const LstmShape& s = args.shape;
  const int64_t rows = s.steps * s.batch;
  OutputGradientArgs out;
  out.steps = s.steps;
  out.batch = s.batch;
  out.output_size = s.output_size;
  out.grad_y_stride = s.directions * s.output_size;
  out.lengths = args.lengths;
  out.reset_mask = args.reset_mask;
  for (int i = 0; i < s.directions; ++i) {
    const LstmBackwardDirection& from = directions[i];
    OutputGradientDirection& to = out.direction[i];
    to.grad_y = from.grad_y;
    to.grad_h_n = from.grad_h_n;
    to.grad_h_prev = advance(grad_h_prev, i * rows * s.output_size, dtype_size(args.dtype));
    to.grad_output = from.grad_output;
    to.grad_h_0 = from.grad_h_0;
  }
  const RowGrid launch = row_grid(rows, s.output_size, 1, s.directions);
  if (launch.empty) return;
  dispatch_storage(args.dtype, [&](auto storage) {
    output_gradient_kernel<decltype(storage)><<<launch.grid, launch.block, 0, args.stream>>>(out);
  });
  check_launch("output_gradient_kernel");
}

}  // namespace lstm_fused::cuda
