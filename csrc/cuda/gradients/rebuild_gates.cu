// SPDX-License-Identifier: BSD-3-Clause
#include <algorithm>

#include "cuda/device/math.cuh"
#include "cuda/device/row_grid.cuh"
#include "cuda/device/storage.cuh"
#include "cuda/direction_weights.h"
#include "cuda/gradients/gather_rows.h"
#include "cuda/gradients/rebuild_gates.h"
#include "cuda/status.h"
#include "cuda/workspace.h"

namespace lstm_fused::cuda {
namespace {

struct ActivationArgs {
  int64_t rows = 0, hidden_size = 0;
  const void* preactivations = nullptr;  // (rows, 4H) accumulator, without bias; may be gates
  const void* b_ih = nullptr;            // (4H) storage; null without bias
  const void* b_hh = nullptr;
  void* gates = nullptr;  // out (rows, 4H) storage
};

template <typename Storage, int kWidth>
__global__ void __launch_bounds__(kRowThreads)
    activate_gates_kernel(const __grid_constant__ ActivationArgs args) {
  const int64_t row = grid_row(), j = grid_column<kWidth>();
  if (row >= args.rows || j >= args.hidden_size) return;
  const int64_t first = row * kGates * args.hidden_size + j;

  // Complete the pre-activations.
  Values<Storage, kWidth> a[kGates];
#pragma unroll
  for (int gate = 0; gate < kGates; ++gate) {
    const int64_t column = gate * args.hidden_size;
    a[gate] = load_accumulators<Storage, kWidth>(args.preactivations, first + column);
    if (args.b_ih == nullptr) continue;
    const auto b_ih = load<Storage, kWidth>(args.b_ih, column + j);
    const auto b_hh = load<Storage, kWidth>(args.b_hh, column + j);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) a[gate][i] += b_ih[i] + b_hh[i];
  }

  // Activate.
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    const auto gates = activate_gates<DeviceMath>(a[kInputGate][i], a[kForgetGate][i],
                                                  a[kCellGate][i], a[kOutputGate][i]);
    a[kInputGate][i] = gates.i;
    a[kForgetGate][i] = gates.f;
    a[kCellGate][i] = gates.g;
    a[kOutputGate][i] = gates.o;
  }
#pragma unroll
  for (int gate = 0; gate < kGates; ++gate) {
    store<Storage>(args.gates, first + gate * args.hidden_size, a[gate]);
  }
}

template <typename Storage, int kWidth>
void launch_activation(const ActivationArgs& args, cudaStream_t stream) {
  const RowGrid launch = row_grid(args.rows, args.hidden_size, kWidth, 1);
  activate_gates_kernel<Storage, kWidth><<<launch.grid, launch.block, 0, stream>>>(args);
  check_launch("activate_gates_kernel");
}

void activate(const ActivationArgs& args, DType dtype, cudaStream_t stream) {
  dispatch_storage(dtype, [&](auto type) {
    using Storage = decltype(type);
    constexpr int kWidth = kVectorWidth<Accumulator<Storage>>;
    constexpr int64_t kBytes = kWidth * sizeof(Storage);
    const bool vectorize = args.hidden_size % kWidth == 0 && is_aligned(args.gates, kBytes) &&
                           is_aligned(args.preactivations, kWidth * sizeof(Accumulator<Storage>)) &&
                           is_aligned(args.b_ih, kBytes) && is_aligned(args.b_hh, kBytes);
    if (vectorize) {
      launch_activation<Storage, kWidth>(args, stream);
    } else {
      launch_activation<Storage, 1>(args, stream);
    }
  });
}

// sums (rows, 4H) accumulator = operands·weightᵀ + beta·sums; operands and weight have `columns`
// each.
void add_product(const Blas& blas, int64_t rows, const void* operands, int64_t stride,
                 const void* weight, int64_t columns, int64_t gates, double beta, void* sums) {
  Gemm gemm;
  gemm.m = rows;
  gemm.n = gates;
  gemm.k = columns;
  gemm.a = {operands, stride};
  gemm.b = {weight, columns, true};
  gemm.c = sums;
  gemm.c_stride = gates;
  gemm.c_accumulator = true;
  gemm.beta = beta;
  blas.gemm(gemm);
}

// sums += h_prev·W_hhᵀ, for steps [begin, end). `h_prev`: a copy of it, (T, N, P), or null.
void add_recurrent(const RebuildCall& call, int direction, int64_t begin, int64_t end,
                   const void* h_prev, const Blas& blas, void* sums) {
  const LstmShape& s = call.shape;
  const LstmGatesDirection& d = call.direction[direction];
  const int64_t storage = dtype_size(call.dtype), accumulator = accumulator_size(call.dtype);
  const int64_t gates = kGates * s.hidden_size;
  const auto add = [&](int64_t from, int64_t to, const void* operands, int64_t stride) {
    if (from >= to) return;
    add_product(blas, (to - from) * s.batch, operands, stride, d.weights.w_hh, s.output_size, gates,
                1, advance(sums, (from - begin) * s.batch * gates, accumulator));
  };
  if (h_prev != nullptr) {
    add(begin, end, advance(h_prev, begin * s.batch * s.output_size, storage), s.output_size);
    return;
  }

  // NOTE: h_prev is y moved by one step, so no copy is made of it.
  const int64_t y_stride = s.directions * s.output_size;
  const bool reverse = direction == 1;
  const int64_t first = reverse ? s.steps - 1 : 0;
  const int64_t rest_begin = reverse ? begin : std::max<int64_t>(begin, 1);
  const int64_t rest_end = reverse ? std::min(end, s.steps - 1) : end;
  if (begin <= first && first < end) add(first, first + 1, d.h_0, s.output_size);
  const int64_t from_step = rest_begin + (reverse ? 1 : -1);
  add(rest_begin, rest_end, advance(d.y, from_step * s.batch * y_stride, storage), y_stride);
}

}  // namespace

void rebuild_gates(const RebuildCall& call, const Blas& blas) {
  const LstmShape& s = call.shape;
  check_shape(s);
  if (s.batch == 0) return;
  const int64_t storage = dtype_size(call.dtype);
  const int64_t gates = kGates * s.hidden_size;
  const bool ragged = call.lengths != nullptr || call.reset_mask != nullptr;
  const RebuildWorkspace parts =
      rebuild_workspace(s, call.dtype, call.lengths != nullptr, call.reset_mask != nullptr);
  char* workspace = static_cast<char*>(call.workspace);

  for (int i = 0; i < s.directions; ++i) {
    const LstmGatesDirection& d = call.direction[i];
    if (ragged) {
      GatherRows gather;
      gather.steps = s.steps;
      gather.batch = s.batch;
      gather.row_bytes = s.output_size * storage;
      gather.rows = d.y;
      gather.stride_bytes = s.directions * gather.row_bytes;
      gather.shift = i == 0 ? -1 : 1;
      gather.first_rows = d.h_0;
      gather.lengths = call.lengths;
      gather.reset_mask = call.reset_mask;
      gather.out = workspace + parts.h_prev;
      gather_rows(gather, call.stream);
    }
    for (int64_t begin = 0; begin < s.steps; begin += parts.steps_per_product) {
      const int64_t end = std::min(begin + parts.steps_per_product, s.steps);
      ActivationArgs args;
      args.rows = (end - begin) * s.batch;
      args.hidden_size = s.hidden_size;
      args.b_ih = d.weights.b_ih;
      args.b_hh = d.weights.b_hh;
      args.gates = advance(d.gates, begin * s.batch * gates, storage);
      void* sums =
          storage == accumulator_size(call.dtype) ? args.gates : workspace + parts.preactivations;
      args.preactivations = sums;
      add_product(blas, args.rows, advance(call.x, begin * s.batch * s.input_size, storage),
                  s.input_size, d.weights.w_ih, s.input_size, gates, 0, sums);
      add_recurrent(call, i, begin, end, ragged ? workspace + parts.h_prev : nullptr, blas, sums);
      activate(args, call.dtype, call.stream);
    }
  }
}

}  // namespace lstm_fused::cuda
