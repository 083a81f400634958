// SPDX-License-Identifier: BSD-3-Clause
// What the kernels of a cell with options share: single elements, a row's place in its sequence,
// and what a unit reads of the options.
//
// NOTE: a thread takes one unit at a time, where the plain kernels take vectors: an option adds
// arrays of other types, whose alignment would have to be looked at too, and needs registers.
#pragma once

#include "common/cell_options.h"
#include "common/option_cell.h"
#include "cuda/device/math.cuh"
#include "cuda/device/row_grid.cuh"
#include "cuda/device/storage.cuh"

namespace lstm_fused::cuda {

template <typename Storage>
__device__ __forceinline__ Accumulator<Storage> element(const void* array, int64_t i) {
  return to_accumulator(static_cast<const Storage*>(array)[i]);
}
template <typename Storage>
__device__ __forceinline__ Accumulator<Storage> element_or_zero(const void* array, int64_t i) {
  return array == nullptr ? Accumulator<Storage>{0} : element<Storage>(array, i);
}
template <typename Storage>
__device__ __forceinline__ Accumulator<Storage>& accumulator(void* array, int64_t i) {
  return static_cast<Accumulator<Storage>*>(array)[i];
}
template <typename Storage>
__device__ __forceinline__ Accumulator<Storage> accumulator(const void* array, int64_t i) {
  return static_cast<const Accumulator<Storage>*>(array)[i];
}
template <typename Storage>
__device__ __forceinline__ void put(void* array, int64_t i, Accumulator<Storage> value) {
  static_cast<Storage*>(array)[i] = to_storage<Storage>(value);
}

// What a launch has in common for all rows and directions.
struct OptionStepArgs {
  int64_t steps = 0, batch = 0, hidden_size = 0, output_size = 0;
  int64_t directions = 1;
  bool first_call = false;  // no step of this sequence has run yet
  const int64_t* lengths = nullptr;
  const uint8_t* reset_mask = nullptr;
  CellOptions options;
};

// A row's place in its own sequence, at step t.
struct RowOfStep {
  int64_t n, t, length;
  bool reverse;
  bool active, first, last, reset;

  __device__ __forceinline__ RowOfStep(const OptionStepArgs& args, int64_t t, int64_t n,
                                       bool reverse)
      : n(n), t(t), length(row_length(args.lengths, n, args.steps)), reverse(reverse) {
    active = t < length;
    first = t == first_step();
    last = t == (reverse ? 0 : length - 1);
    reset = active && is_reset(args.reset_mask, t, n, args.batch);
  }
  __device__ __forceinline__ int64_t first_step() const { return reverse ? length - 1 : 0; }
};

// Flags (T·N, H): 1 where one is set, 0 elsewhere; `fixed` without them.
template <typename A>
__device__ __forceinline__ A kept_part(const uint8_t* flags, int64_t i, double fixed) {
  return flags == nullptr ? static_cast<A>(fixed) : flags[i] != 0 ? A{1} : A{0};
}

// What the cell of unit j of an active row reads of the options.
template <typename Storage>
__device__ __forceinline__ OptionValues<Accumulator<Storage>> load_options(
    const OptionStepArgs& args, const CellOptionInputs& inputs, const RowOfStep& row, int64_t j) {
  using A = Accumulator<Storage>;
  const CellOptions& options = args.options;
  const int64_t hidden = args.hidden_size, unit = (row.t * args.batch + row.n) * hidden + j;
  OptionValues<A> values;
  values.is_coupled = options.coupled_gates;
  values.has_clip = options.cell_clip > 0;
  values.clip = static_cast<A>(options.cell_clip);
  values.has_norm = inputs.cell_norm != nullptr;
  values.has_peephole = inputs.peephole != nullptr;
  if (values.has_peephole) {
    values.w_ci = element<Storage>(inputs.peephole, j);
    values.w_cf = element<Storage>(inputs.peephole, hidden + j);
    values.w_co = element<Storage>(inputs.peephole, 2 * hidden + j);
  }
  values.has_keep_c = inputs.keep_c != nullptr || options.zoneout_c > 0;
  if (values.has_keep_c) values.keep_c = kept_part<A>(inputs.keep_c, unit, options.zoneout_c);
  values.has_keep_h = inputs.keep_h != nullptr || options.zoneout_h > 0;
  if (values.has_keep_h) values.keep_h = kept_part<A>(inputs.keep_h, unit, options.zoneout_h);
  return values;
}

// The c that enters the cell of unit j of an active row. c_prev: (N, H) accumulator, of the step
// before.
template <typename Storage>
__device__ __forceinline__ Accumulator<Storage> entering_c(const CellOptionInputs& inputs,
                                                           const RowOfStep& row, int64_t unit,
                                                           const void* c_0, const void* c_prev) {
  if (row.reset) return element_or_zero<Storage>(inputs.reset_c, unit);
  return row.first ? element<Storage>(c_0, unit) : accumulator<Storage>(c_prev, unit);
}

}  // namespace lstm_fused::cuda
