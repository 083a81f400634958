// SPDX-License-Identifier: BSD-3-Clause
#include <algorithm>

#include "cuda/device/math.cuh"
#include "cuda/device/row_grid.cuh"
#include "cuda/device/storage.cuh"
#include "cuda/direction_weights.h"
#include "cuda/gradients/gather_rows.h"
#include "cuda/gradients/weight_gradients.h"
#include "cuda/status.h"
#include "cuda/workspace.h"

namespace lstm_fused::cuda {
namespace {

// ---- The cell output o·tanh(c), by which the gradient of W_hr multiplies grad_output ----

template <typename Storage>
__global__ void __launch_bounds__(kRowThreads)
    cell_output_kernel(const __grid_constant__ CellOutputCall args) {
  const int64_t row = grid_row(), j = grid_column<1>();
  const int64_t batch = args.shape.batch, hidden_size = args.shape.hidden_size;
  if (row >= args.shape.steps * batch || j >= hidden_size) return;
  const int64_t t = row / batch, n = row % batch;
  Values<Storage, 1> output;
  if (t < row_length(args.lengths, n, args.shape.steps)) {
    const auto o = load<Storage, 1>(args.gates, (row * kGates + kOutputGate) * hidden_size + j);
    const auto c = load_accumulators<Storage, 1>(args.cells, row * hidden_size + j);
    output[0] = o[0] * DeviceMath::tanh(c[0]);
  }
  store<Storage>(args.out, row * hidden_size + j, output);
}

// ---- The bias gradient: column sums of grad_gates, in two stages ----

constexpr int kSumColumns = 32;  // a block's columns, one for each lane of a warp
constexpr int kSumWarps = 8;     // a block's warps, each of which takes every eighth row of a part
static_assert(kSumColumns * kSumWarps <= 1024, "a block has at most 1024 threads");

struct ColumnSumArgs {
  int64_t rows = 0, columns = 0;
  int64_t rows_per_part = 0;
  int64_t parts = 0;
  const void* values = nullptr;  // (rows, columns) storage
  void* partial = nullptr;       // (parts, columns) accumulator
  void* sums[2] = {};            // out (columns) storage each, with equal values
};

template <typename Storage>
__global__ void __launch_bounds__(kSumColumns* kSumWarps)
    partial_sums_kernel(const __grid_constant__ ColumnSumArgs args) {
  using Sum = Accumulator<Storage>;
  __shared__ Sum sums[kSumWarps][kSumColumns];
  const int64_t column = int64_t{blockIdx.x} * kSumColumns + threadIdx.x;
  const int64_t begin = blockIdx.y * args.rows_per_part;
  const int64_t end = min(begin + args.rows_per_part, args.rows);

  // Sum this warp's rows.
  Sum sum = 0;
  if (column < args.columns) {
    for (int64_t row = begin + threadIdx.y; row < end; row += kSumWarps) {
      sum += load<Storage, 1>(args.values, row * args.columns + column)[0];
    }
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();

  // Sum over the warps.
  if (threadIdx.y != 0 || column >= args.columns) return;
  for (int warp = 1; warp < kSumWarps; ++warp) sum += sums[warp][threadIdx.x];
  static_cast<Sum*>(args.partial)[blockIdx.y * args.columns + column] = sum;
}

template <typename Storage>
__global__ void __launch_bounds__(kRowThreads)
    final_sums_kernel(const __grid_constant__ ColumnSumArgs args) {
  const int64_t column = grid_row();
  if (column >= args.columns) return;
  Values<Storage, 1> sum;
  for (int64_t part = 0; part < args.parts; ++part) {
    sum[0] += load_accumulators<Storage, 1>(args.partial, part * args.columns + column)[0];
  }
  store<Storage>(args.sums[0], column, sum);
  store<Storage>(args.sums[1], column, sum);
}

template <typename Storage>
void launch_column_sums(ColumnSumArgs args, cudaStream_t stream) {
  args.rows_per_part = rows_per_sum_part(args.rows);
  args.parts = ceil_div(args.rows, args.rows_per_part);
  const dim3 grid(static_cast<unsigned>(ceil_div(args.columns, kSumColumns)),
                  static_cast<unsigned>(args.parts));
  partial_sums_kernel<Storage><<<grid, dim3(kSumColumns, kSumWarps), 0, stream>>>(args);
  check_launch("partial_sums_kernel");
  // NOTE: a thread for each column, as a row of the grid: there may be more columns than a grid
  // has.
  const RowGrid launch = row_grid(args.columns, 1, 1, 1);
  final_sums_kernel<Storage><<<launch.grid, launch.block, 0, stream>>>(args);
  check_launch("final_sums_kernel");
}

// ---- The products ----

// c (B, m, n) = aᵀ·b + beta·c over the rows of each of B samples, of (rows, m) in a and of (rows,
// n) in b: a sample's rows stand B apart, since B divides N.
void row_product(const Blas& blas, int64_t samples, int64_t rows, const void* a, int64_t m,
                 const void* b, int64_t n, int64_t b_stride, double beta, void* c) {
  Gemm gemm;
  gemm.m = m;
  gemm.n = n;
  gemm.k = rows / samples;
  gemm.a = {a, samples * m, true, m};
  gemm.b = {b, samples * b_stride, false, b_stride};
  gemm.c = c;
  gemm.c_stride = n;
  gemm.c_batch_stride = m * n;
  gemm.beta = beta;
  gemm.batch = samples;
  blas.gemm(gemm);
}

// Writes out (T, N, D): x, but zero past a length, where x may be NaN.
void gather_input(const GradientCall& call, void* out) {
  const LstmShape& s = call.shape;
  GatherRows gather;
  gather.steps = s.steps;
  gather.batch = s.batch;
  gather.row_bytes = s.input_size * dtype_size(call.dtype);
  gather.rows = call.x;
  gather.stride_bytes = gather.row_bytes;
  gather.lengths = call.lengths;
  gather.out = out;
  gather_rows(gather, call.stream);
}

// Writes out (T, N, P): a direction's h_prev, zero where a row takes no part.
void gather_h_prev(const GradientCall& call, int direction, void* out) {
  const LstmShape& s = call.shape;
  const GradientDirection& d = call.direction[direction];
  const int64_t storage = dtype_size(call.dtype);
  GatherRows gather;
  gather.steps = s.steps;
  gather.batch = s.batch;
  gather.row_bytes = s.output_size * storage;
  gather.rows = d.y;
  gather.stride_bytes = s.directions * s.output_size * storage;
  gather.shift = direction == 0 ? -1 : 1;
  gather.first_rows = d.h_0;
  gather.lengths = call.lengths;
  gather.reset_mask = call.reset_mask;
  gather.out = out;
  gather_rows(gather, call.stream);
}

// grad_w_hh = Σ grad_gatesᵀ·h_prev; `h_prev` is room for a copy.
void recurrent_gradient(const GradientCall& call, int direction, void* h_prev, const Blas& blas) {
  const LstmShape& s = call.shape;
  const GradientDirection& d = call.direction[direction];
  const void* grads = d.grad_recurrent != nullptr ? d.grad_recurrent : d.recurrence.grad_gates;
  const int64_t storage = dtype_size(call.dtype);
  const int64_t gates = kGates * s.hidden_size, y_stride = s.directions * s.output_size;
  const int64_t rows = s.steps * s.batch, rest = rows - s.batch;
  if (d.recurrent_inputs != nullptr) {
    return row_product(blas, call.samples, rows, grads, gates, d.recurrent_inputs, s.output_size,
                       s.output_size, 0, d.grad_w_hh);
  }
  if (call.lengths != nullptr || call.reset_mask != nullptr) {
    gather_h_prev(call, direction, h_prev);
    row_product(blas, call.samples, rows, grads, gates, h_prev, s.output_size, s.output_size, 0,
                d.grad_w_hh);
    return;
  }

  // NOTE: h_prev is y moved by one step, so no copy is made of it.
  const int64_t first = direction == 0 ? 0 : rest;
  row_product(blas, call.samples, s.batch, advance(grads, first * gates, storage), gates, d.h_0,
              s.output_size, s.output_size, 0, d.grad_w_hh);
  if (rest == 0) return;
  const int64_t rest_begin = direction == 0 ? s.batch : 0, from_row = s.batch - rest_begin;
  row_product(blas, call.samples, rest, advance(grads, rest_begin * gates, storage), gates,
              advance(d.y, from_row * y_stride, storage), s.output_size, y_stride, 1, d.grad_w_hh);
}

// Clears all gradients: where there are no rows, every sum is zero.
void clear(const GradientCall& call) {
  const LstmShape& s = call.shape;
  const int64_t storage = dtype_size(call.dtype), gates = kGates * s.hidden_size;
  const auto clear_one = [&](void* out, int64_t elements) {
    if (out == nullptr) return;
    check_cuda(cudaMemsetAsync(out, 0, call.samples * elements * storage, call.stream),
               "cudaMemsetAsync");
  };
  for (int i = 0; i < s.directions; ++i) {
    const GradientDirection& d = call.direction[i];
    clear_one(d.grad_w_ih, gates * s.input_size);
    clear_one(d.grad_w_hh, gates * s.output_size);
    clear_one(d.grad_b_ih, gates);
    clear_one(d.grad_b_hh, gates);
    clear_one(d.grad_w_hr, s.output_size * s.hidden_size);
  }
}

}  // namespace

void cell_output(const CellOutputCall& args) {
  const LstmShape& s = args.shape;
  const RowGrid launch = row_grid(s.steps * s.batch, s.hidden_size, 1, 1);
  if (launch.empty) return;
  dispatch_storage(args.dtype, [&](auto storage) {
    cell_output_kernel<decltype(storage)><<<launch.grid, launch.block, 0, args.stream>>>(args);
  });
  check_launch("cell_output_kernel");
}

void input_gradient(const GradientCall& call, void* grad_x, const Blas& blas) {
  const LstmShape& s = call.shape;
  for (int i = 0; i < s.directions; ++i) {
    Gemm gemm;
    gemm.m = s.steps * s.batch;
    gemm.n = s.input_size;
    gemm.k = kGates * s.hidden_size;
    gemm.a = {call.direction[i].recurrence.grad_gates, gemm.k};
    gemm.b = {call.direction[i].recurrence.weights.w_ih, s.input_size};
    gemm.c = grad_x;
    gemm.c_stride = s.input_size;
    gemm.beta = i == 0 ? 0 : 1;
    blas.gemm(gemm);
  }
}

void weight_gradients(const GradientCall& call, const Blas& blas) {
  const LstmShape& s = call.shape;
  if (s.batch == 0) return clear(call);
  const int64_t rows = s.steps * s.batch, gates = kGates * s.hidden_size;
  const WeightGradientWorkspace parts = weight_gradient_workspace(
      s, call.dtype, call.lengths != nullptr, call.reset_mask != nullptr, call.samples);
  char* workspace = static_cast<char*>(call.workspace);

  const void* x = call.x;
  if (call.lengths != nullptr) {
    gather_input(call, workspace + parts.input);
    x = workspace + parts.input;
  }

  for (int i = 0; i < s.directions; ++i) {
    const GradientDirection& d = call.direction[i];
    row_product(blas, call.samples, rows, d.recurrence.grad_gates, gates, x, s.input_size,
                s.input_size, 0, d.grad_w_ih);
    recurrent_gradient(call, i, workspace + parts.h_prev, blas);
    if (d.grad_b_ih != nullptr) {
      ColumnSumArgs sums;
      // The gates of a row's samples, one behind the other, are columns of their own.
      sums.rows = rows / call.samples;
      sums.columns = call.samples * gates;
      sums.values = d.recurrence.grad_gates;
      sums.partial = workspace + parts.sums;
      sums.sums[0] = d.grad_b_ih;
      sums.sums[1] = d.grad_b_hh;
      dispatch_storage(call.dtype,
                       [&](auto type) { launch_column_sums<decltype(type)>(sums, call.stream); });
    }
    if (s.projection) {
      row_product(blas, call.samples, rows, d.recurrence.grad_output, s.output_size, d.cell_output,
                  s.hidden_size, s.hidden_size, 0, d.grad_w_hr);
    }
  }
}

}  // namespace lstm_fused::cuda
