// SPDX-License-Identifier: BSD-3-Clause
// The kernel of options_recurrence with layer normalisation: a block for each row. A thread takes
// every blockDim.x-th unit, and leaves what it finds of them in `scratch`, which no other reads.
#pragma once

#include "cuda/options/backward.cuh"
#include "cuda/options/block_sums.cuh"
#include "cuda/workspace.h"

namespace lstm_fused::cuda {

// Arrays of H accumulators in a row's scratch.
enum Scratch {
  kScratchCandidate = 0,       // c̃, then n(c̃)
  kScratchNormGradient = 1,    // of n(c̃)
  kScratchOutputGradient = 2,  // of o's pre-activation
  kScratchStateGradient = 3,   // of h
  kScratchActivations = 4,     // of the pre-activations, 4H
};
static_assert(kScratchActivations + kGates == kNormScratch, "the workspace has room for them");

// Finds c̃ of a row's units, and its statistics: mean, and 1 / sqrt(var + kNormEpsilon).
template <typename Storage>
__device__ __forceinline__ void find_candidates(
    const OptionBackwardArgs& args, const OptionBackwardDirection& d, const RowOfStep& row,
    Accumulator<Storage>* candidates, Accumulator<Storage> (&sum_slots)[kNormWarps][1],
    Accumulator<Storage> (&square_slots)[kNormWarps][1], Accumulator<Storage>& mean,
    Accumulator<Storage>& scale) {
  using A = Accumulator<Storage>;
  const int64_t hidden = args.hidden_size;
  A sum[1] = {}, squares[1] = {};
  for (int64_t j = threadIdx.x; j < hidden; j += blockDim.x) {
    const int64_t unit = row.n * hidden + j;
    candidates[j] = rebuild_candidate<DeviceMath>(
        load_gates<Storage>(args, d, row.n, j), accumulator<Storage>(d.cells, unit),
        entering_c<Storage>(d.options, row, unit, d.c_0, d.c_prev),
        load_options<Storage>(args, d.options, row, j));
    sum[0] += candidates[j];
  }
  sum_over_block(sum, sum_slots);
  mean = sum[0] / static_cast<A>(hidden);
  for (int64_t j = threadIdx.x; j < hidden; j += blockDim.x) {
    squares[0] += (candidates[j] - mean) * (candidates[j] - mean);
  }
  sum_over_block(squares, square_slots);
  scale = 1 / sqrt(squares[0] / static_cast<A>(hidden) + static_cast<A>(kNormEpsilon));
}

// From the gradient of h of unit j through o and tanh, to the gradient of n(c̃), which it gives.
template <typename Storage>
__device__ __forceinline__ Accumulator<Storage> differentiate_output(
    const OptionBackwardArgs& args, const OptionBackwardDirection& d, const RowOfStep& row,
    int64_t j, Accumulator<Storage> normal, Accumulator<Storage>* scratch) {
  using A = Accumulator<Storage>;
  const int64_t hidden = args.hidden_size, unit = row.n * hidden + j;
  A dh =
      d.dh != nullptr ? accumulator<Storage>(d.dh, unit) : state_gradient<Storage>(args, d, row, j);
  scratch[kScratchStateGradient * hidden + j] = dh;
  const auto values = load_options<Storage>(args, d.options, row, j);
  if (values.has_keep_h) dh *= 1 - values.keep_h;
  const A o = element<Storage>(d.gates, (row.n * kGates + kOutputGate) * hidden + j);
  const A gain = element<Storage>(d.options.cell_norm, j);
  const A tanh_shown = DeviceMath::tanh(
      DeviceMath::multiply_add(gain, normal, element<Storage>(d.options.cell_norm, hidden + j)));
  const A d_shown = dh * o * ((1 - tanh_shown) * (1 + tanh_shown));
  scratch[kScratchOutputGradient * hidden + j] = dh * tanh_shown * o * (1 - o);
  if (d.cell_output != nullptr) put<Storage>(d.cell_output, unit, o * tanh_shown);
  if (d.grad_cell_norm != nullptr) {
    const int64_t first = row.n * 2 * hidden + j;
    accumulator<Storage>(d.grad_cell_norm, first) += d_shown * normal;
    accumulator<Storage>(d.grad_cell_norm, first + hidden) += d_shown;
  }
  return d_shown * gain;
}

// What the norms of the products need of the gradients of unit j's pre-activations: for each of
// both the sums of their gradient by n(v), and of its product with n(v).
template <typename Storage>
__device__ __forceinline__ void add_norm_sums(const OptionBackwardArgs& args,
                                              const OptionBackwardDirection& d, int64_t n,
                                              int64_t j, int gate, Accumulator<Storage> grad,
                                              Accumulator<Storage> (&sums)[2 * kNorms]) {
  const int64_t gates = kGates * args.hidden_size, column = gate * args.hidden_size + j;
  if (d.grad_bias != nullptr) accumulator<Storage>(d.grad_bias, n * gates + column) += grad;
#pragma unroll
  for (int i = 0; i < kNorms; ++i) {
    const int64_t of_row = (n * kNorms + i) * gates + column;
    const auto normal = element<Storage>(d.norms.normalised, of_row);
    const auto d_normal = grad * element<Storage>(d.options.gains, i * gates + column);
    if (d.grad_gains != nullptr) accumulator<Storage>(d.grad_gains, of_row) += grad * normal;
    sums[2 * i] += d_normal;
    sums[2 * i + 1] += d_normal * normal;
  }
}

// Through the norms of the products, from the gradients of a row's pre-activations.
template <typename Storage>
__device__ __forceinline__ void store_product_gradients(
    const OptionBackwardArgs& args, const OptionBackwardDirection& d, int64_t n,
    const Accumulator<Storage>* activations, const Accumulator<Storage> (&sums)[2 * kNorms]) {
  using A = Accumulator<Storage>;
  const int64_t gates = kGates * args.hidden_size;
  for (int64_t j = threadIdx.x; j < args.hidden_size; j += blockDim.x) {
#pragma unroll
    for (int i = 0; i < kNorms; ++i) {
      const A mean = sums[2 * i] / static_cast<A>(gates);
      const A slope = sums[2 * i + 1] / static_cast<A>(gates);
      const A scale =
          accumulator<Storage>(static_cast<const void*>(d.norms.scales), n * kNorms + i);
      for (int64_t column = j; column < gates; column += args.hidden_size) {
        const A normal = element<Storage>(d.norms.normalised, (n * kNorms + i) * gates + column);
        const A d_normal =
            activations[column] * element<Storage>(d.options.gains, i * gates + column);
        put<Storage>(i == 0 ? d.grad_gates : d.grad_recurrent, n * gates + column,
                     scale * (d_normal - mean - normal * slope));
      }
    }
  }
}

template <typename Storage>
__global__ void __launch_bounds__(kNormThreads, kNormBlocks)
    option_norm_backward_kernel(const __grid_constant__ OptionBackwardArgs args) {
  using A = Accumulator<Storage>;
  __shared__ A sum_slots[kNormWarps][1], square_slots[kNormWarps][1];
  __shared__ A cell_slots[kNormWarps][2], product_slots[kNormWarps][2 * kNorms];
  const int64_t n = blockIdx.x, hidden = args.hidden_size;
  const bool reverse = blockIdx.z == 1;
  const OptionBackwardDirection d = reverse ? args.direction[1] : args.direction[0];
  const RowOfStep row(args, d.step, n, reverse);
  if (!row.active) {
    for (int64_t j = threadIdx.x; j < hidden; j += blockDim.x) {
      store_no_gradient<Storage>(args, d, row, j);
    }
    return;
  }

  // To the gradients of o's pre-activation and of n(c̃).
  A* const scratch = static_cast<A*>(d.scratch) + n * kNormScratch * hidden;
  A* const normals = scratch + kScratchCandidate * hidden;
  A* const d_normals = scratch + kScratchNormGradient * hidden;
  A mean, scale;
  find_candidates<Storage>(args, d, row, normals, sum_slots, square_slots, mean, scale);
  A cell_sums[2] = {};
  for (int64_t j = threadIdx.x; j < hidden; j += blockDim.x) {
    normals[j] = (normals[j] - mean) * scale;
    d_normals[j] = differentiate_output<Storage>(args, d, row, j, normals[j], scratch);
    cell_sums[0] += d_normals[j];
    cell_sums[1] += d_normals[j] * normals[j];
  }
  sum_over_block(cell_sums, cell_slots);

  // Through the norm of c̃ and the cell.
  const A of_mean = cell_sums[0] / static_cast<A>(hidden);
  const A slope = cell_sums[1] / static_cast<A>(hidden);
  A* const activations = scratch + kScratchActivations * hidden;
  A product_sums[2 * kNorms] = {};
  for (int64_t j = threadIdx.x; j < hidden; j += blockDim.x) {
    const OutputGradient<A> normed = {scratch[kScratchOutputGradient * hidden + j],
                                      scale * (d_normals[j] - of_mean - normals[j] * slope)};
    const auto grad =
        differentiate_cell<Storage>(args, d, row, j, scratch[kScratchStateGradient * hidden + j],
                                    load_options<Storage>(args, d.options, row, j), normed);
    const A all[kGates] = {grad.i, grad.f, grad.g, grad.o};
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) {
      activations[gate * hidden + j] = all[gate];
      add_norm_sums<Storage>(args, d, n, j, gate, all[gate], product_sums);
    }
  }
  sum_over_block(product_sums, product_slots);
  store_product_gradients<Storage>(args, d, n, activations, product_sums);
}

}  // namespace lstm_fused::cuda
