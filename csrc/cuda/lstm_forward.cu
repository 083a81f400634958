// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/blas.h"
#include "cuda/device/row_grid.cuh"
#include "cuda/device/storage.cuh"
#include "cuda/direction_weights.h"
#include "cuda/lstm_forward.h"
#include "cuda/persistent/forward.h"
#include "cuda/status.h"
#include "cuda/stepwise/forward.h"
#include "cuda/workspace.h"

namespace lstm_fused::cuda {
namespace {

struct BiasArgs {
  int64_t gates = 0;  // 4H
  const void* b_ih[kMaxDirections] = {};
  const void* b_hh[kMaxDirections] = {};
  void* bias = nullptr;  // out (L, 4H) accumulator
};

template <typename Storage>
__global__ void __launch_bounds__(kRowThreads)
    sum_biases_kernel(const __grid_constant__ BiasArgs args) {
  const int64_t j = grid_column<1>();
  if (j >= args.gates) return;
  const bool reverse = blockIdx.z == 1;
  const auto b_ih = load<Storage, 1>(reverse ? args.b_ih[1] : args.b_ih[0], j);
  const auto b_hh = load<Storage, 1>(reverse ? args.b_hh[1] : args.b_hh[0], j);
  static_cast<Accumulator<Storage>*>(args.bias)[blockIdx.z * args.gates + j] = b_ih[0] + b_hh[0];
}

void sum_biases(const LstmForwardCall& call, void* bias) {
  BiasArgs args;
  args.gates = kGates * call.shape.hidden_size;
  args.bias = bias;
  for (int i = 0; i < call.shape.directions; ++i) {
    args.b_ih[i] = call.direction[i].weights.b_ih;
    args.b_hh[i] = call.direction[i].weights.b_hh;
  }
  const RowGrid launch = row_grid(1, args.gates, 1, call.shape.directions);
  dispatch_storage(call.dtype, [&](auto storage) {
    sum_biases_kernel<decltype(storage)><<<launch.grid, launch.block, 0, call.stream>>>(args);
  });
  check_launch("sum_biases_kernel");
}

}  // namespace

void lstm_forward(const LstmForwardCall& call, const LstmPlan& plan) {
  const LstmShape& s = call.shape;
  check_shape(s);
  if (s.batch == 0) return;
  const int64_t accumulator = accumulator_size(call.dtype);
  const int64_t rows = s.steps * s.batch, gates = kGates * s.hidden_size;
  const Blas blas(call.blas_handle, call.stream, call.dtype, plan.allow_tf32);
  const ForwardWorkspace parts =
      forward_workspace(s, call.dtype, plan.preactivations_in_gates, plan.recurrence_bytes);
  char* workspace = static_cast<char*>(call.workspace);

  // Sum the biases, which the recurrence adds.
  const bool has_bias = call.direction[0].weights.b_ih != nullptr;
  if (has_bias) sum_biases(call, workspace + parts.bias);

  // The input GEMM: multiply x by W_ih, for all steps at once.
  ForwardRecurrence directions[kMaxDirections];
  for (int i = 0; i < s.directions; ++i) {
    const LstmForwardDirection& from = call.direction[i];
    void* preactivations = plan.preactivations_in_gates ? from.gates
                                                        : advance(workspace + parts.preactivations,
                                                                  i * rows * gates, accumulator);
    Gemm gemm;
    gemm.m = rows;
    gemm.n = gates;
    gemm.k = s.input_size;
    gemm.a = {call.x, s.input_size};
    gemm.b = {from.weights.w_ih, s.input_size, true};
    gemm.c = preactivations;
    gemm.c_stride = gates;
    gemm.c_accumulator = true;
    blas.gemm(gemm);

    directions[i] = forward_recurrence(from, preactivations);
    if (has_bias) directions[i].bias = advance(workspace + parts.bias, i * gates, accumulator);
  }

  const RecurrenceArgs args = recurrence_args(call, plan.allow_tf32, workspace + parts.recurrence);
  if (plan.variant == Variant::kStepwise) {
    stepwise_forward(args, directions, plan.composite, blas);
  } else {
    launch_persistent_forward(args, directions, plan.persistent);
  }
}

}  // namespace lstm_fused::cuda
