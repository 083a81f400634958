// SPDX-License-Identifier: BSD-3-Clause
// The kernel of options_forward with layer normalisation: a block for each row, since a norm needs
// all of a row's features. A thread takes every blockDim.x-th unit, and reads no other's.
#pragma once

#include "cuda/options/block_sums.cuh"
#include "cuda/options/forward.cuh"

namespace lstm_fused::cuda {

// 1 / sqrt(var + kNormEpsilon).
template <typename A>
__device__ __forceinline__ A norm_scale(A squares, A count) {
  return 1 / sqrt(squares / count + static_cast<A>(kNormEpsilon));
}

// A row's products, of x and of what entered, and their statistics.
template <typename A>
struct RowNorms {
  const A* products[kNorms];  // 4H each
  A mean[kNorms], scale[kNorms];
};

template <typename Storage>
__device__ __forceinline__ RowNorms<Accumulator<Storage>> find_norms(
    const OptionForwardArgs& args, const OptionForwardDirection& d, int64_t n,
    Accumulator<Storage> (&sum_slots)[kNormWarps][kNorms],
    Accumulator<Storage> (&square_slots)[kNormWarps][kNorms]) {
  using A = Accumulator<Storage>;
  const int64_t gates = kGates * args.hidden_size;
  const A count = static_cast<A>(gates);
  RowNorms<A> norms;
  norms.products[0] = static_cast<const A*>(d.preactivations) + n * gates;
  norms.products[1] = static_cast<const A*>(d.recurrent) + n * gates;

  // NOTE: in two passes: the squares of products that differ little would cancel.
  A sums[kNorms] = {}, squares[kNorms] = {};
  for (int64_t j = threadIdx.x; j < args.hidden_size; j += blockDim.x) {
    for (int64_t column = j; column < gates; column += args.hidden_size) {
#pragma unroll
      for (int i = 0; i < kNorms; ++i) sums[i] += norms.products[i][column];
    }
  }
  sum_over_block(sums, sum_slots);
#pragma unroll
  for (int i = 0; i < kNorms; ++i) norms.mean[i] = sums[i] / count;
  for (int64_t j = threadIdx.x; j < args.hidden_size; j += blockDim.x) {
    for (int64_t column = j; column < gates; column += args.hidden_size) {
#pragma unroll
      for (int i = 0; i < kNorms; ++i) {
        const A difference = norms.products[i][column] - norms.mean[i];
        squares[i] += difference * difference;
      }
    }
  }
  sum_over_block(squares, square_slots);
#pragma unroll
  for (int i = 0; i < kNorms; ++i) norms.scale[i] = norm_scale(squares[i], count);
  return norms;
}

// The pre-activations of unit j: gain_x·n(x·W_ih) + gain_h·n(h_prev·W_hh) + b.
template <typename Storage>
__device__ __forceinline__ void normalise_unit(const OptionForwardArgs& args,
                                               const OptionForwardDirection& d, int64_t n,
                                               int64_t j,
                                               const RowNorms<Accumulator<Storage>>& norms,
                                               Accumulator<Storage> (&a)[kGates]) {
  const int64_t gates = kGates * args.hidden_size;
#pragma unroll
  for (int gate = 0; gate < kGates; ++gate) {
    const int64_t column = gate * args.hidden_size + j;
    a[gate] = 0;
    if (d.b_ih != nullptr) {
      a[gate] = element<Storage>(d.b_ih, column) + element<Storage>(d.b_hh, column);
    }
#pragma unroll
    for (int i = 0; i < kNorms; ++i) {
      const auto normal = (norms.products[i][column] - norms.mean[i]) * norms.scale[i];
      const auto gain = element<Storage>(d.options.gains, i * gates + column);
      a[gate] = DeviceMath::multiply_add(gain, normal, a[gate]);
      if (d.norms.normalised != nullptr) {
        put<Storage>(d.norms.normalised, (n * kNorms + i) * gates + column, normal);
      }
    }
  }
}

template <typename Storage>
__global__ void __launch_bounds__(kNormThreads, kNormBlocks)
    option_norm_forward_kernel(const __grid_constant__ OptionForwardArgs args) {
  using A = Accumulator<Storage>;
  __shared__ A sum_slots[kNormWarps][kNorms], square_slots[kNormWarps][kNorms];
  __shared__ A cell_sum_slots[kNormWarps][1], cell_square_slots[kNormWarps][1];
  const int64_t n = blockIdx.x, hidden = args.hidden_size;
  const bool reverse = blockIdx.z == 1;
  const OptionForwardDirection d = reverse ? args.direction[1] : args.direction[0];
  const RowOfStep row(args, d.step, n, reverse);
  if (!row.active) {
    for (int64_t j = threadIdx.x; j < hidden; j += blockDim.x) {
      store_no_step<Storage>(args, d, row, j);
    }
    return;
  }

  // The cells, up to c̃.
  const RowNorms<A> norms = find_norms<Storage>(args, d, n, sum_slots, square_slots);
  if (d.norms.scales != nullptr && threadIdx.x < kNorms) {
    accumulator<Storage>(d.norms.scales, n * kNorms + threadIdx.x) =
        threadIdx.x == 0 ? norms.scale[0] : norms.scale[1];
  }
  A* const o = static_cast<A*>(d.output_parts) + n * 2 * hidden;
  A* const candidate = o + hidden;
  A sum[1] = {}, squares[1] = {};
  for (int64_t j = threadIdx.x; j < hidden; j += blockDim.x) {
    A a[kGates];
    normalise_unit<Storage>(args, d, n, j, norms, a);
    const auto values = load_options<Storage>(args, d.options, row, j);
    const auto out = run_cell<Storage>(args, d, row, j, a, values);
    o[j] = out.gates.o;
    candidate[j] = out.candidate;
    sum[0] += out.candidate;
  }

  // Normalise c̃, and make h of it.
  sum_over_block(sum, cell_sum_slots);
  const A mean = sum[0] / static_cast<A>(hidden);
  for (int64_t j = threadIdx.x; j < hidden; j += blockDim.x) {
    squares[0] += (candidate[j] - mean) * (candidate[j] - mean);
  }
  sum_over_block(squares, cell_square_slots);
  const A scale = norm_scale(squares[0], static_cast<A>(hidden));
  for (int64_t j = threadIdx.x; j < hidden; j += blockDim.x) {
    const A shown = DeviceMath::multiply_add(element<Storage>(d.options.cell_norm, j),
                                             (candidate[j] - mean) * scale,
                                             element<Storage>(d.options.cell_norm, hidden + j));
    store_output<Storage>(args, d, row, j, o[j] * DeviceMath::tanh(shown),
                          load_options<Storage>(args, d.options, row, j));
  }
}

}  // namespace lstm_fused::cuda
