// SPDX-License-Identifier: BSD-3-Clause
// What a lane of the persistent kernels reads of the options. Which options there are is the same
// for a whole launch: branches on that never part a warp.
#pragma once

#include "common/option_cell.h"
#include "cuda/device/math.cuh"
#include "cuda/device/storage.cuh"
#include "cuda/options/persistent/arguments.h"

namespace lstm_fused::cuda {

// Zoneout's masks at a step of kCells cells. NOTE: bytes, which are not looked at where they are
// loaded: that would be to wait for them.
template <int kCells>
struct KeepFlags {
  uint8_t c[kCells] = {}, h[kCells] = {};

  // Loads the flags of cell j, at `index` of the masks (T, N, H).
  __device__ __forceinline__ void load(const CellOptionInputs& inputs, int j, bool active,
                                       int64_t index) {
    if (inputs.keep_c != nullptr && active) c[j] = inputs.keep_c[index];
    if (inputs.keep_h != nullptr && active) h[j] = inputs.keep_h[index];
  }
};

// `peephole`: of the unit, as unit_peephole gives it, in shared memory. keeps_c, keeps_h: the
// cell's flags, where there are any.
__device__ __forceinline__ OptionValues<float> option_values(const PersistentOptions& options,
                                                             const CellOptionInputs& inputs,
                                                             const float4& peephole, bool keeps_c,
                                                             bool keeps_h) {
  OptionValues<float> values;
  values.is_coupled = options.coupled_gates;
  values.has_clip = options.cell_clip > 0;
  values.clip = options.cell_clip;
  values.has_peephole = inputs.peephole != nullptr;
  if (values.has_peephole) {
    const float4 w = peephole;
    values.w_ci = w.x;
    values.w_cf = w.y;
    values.w_co = w.z;
  }
  const auto part = [](const uint8_t* flags, bool flag, float fixed) {
    return flags == nullptr ? fixed : flag ? 1.0f : 0.0f;
  };
  values.has_keep_c = inputs.keep_c != nullptr || options.zoneout_c > 0;
  values.keep_c = part(inputs.keep_c, keeps_c, options.zoneout_c);
  values.has_keep_h = inputs.keep_h != nullptr || options.zoneout_h > 0;
  values.keep_h = part(inputs.keep_h, keeps_h, options.zoneout_h);
  return values;
}

// w_ci, w_cf and w_co of a unit; zeros without peepholes, and for units that there are not.
template <typename Storage>
__device__ __forceinline__ float4 unit_peephole(const CellOptionInputs& inputs, int unit,
                                                int hidden_size) {
  if (inputs.peephole == nullptr || unit >= hidden_size) return make_float4(0, 0, 0, 0);
  const Storage* w = static_cast<const Storage*>(inputs.peephole) + unit;
  return make_float4(to_accumulator(w[0]), to_accumulator(w[hidden_size]),
                     to_accumulator(w[2 * hidden_size]), 0);
}

// The sum of both biases of a unit's gates; zeros without them, and for units that there are not.
template <typename Storage>
__device__ __forceinline__ float4 unit_bias(const PersistentOptionDirection& d, int unit,
                                            int hidden_size) {
  float sums[kGates] = {};
  if (d.b_ih != nullptr && unit < hidden_size) {
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) {
      const int i = gate * hidden_size + unit;
      sums[gate] = to_accumulator(static_cast<const Storage*>(d.b_ih)[i]) +
                   to_accumulator(static_cast<const Storage*>(d.b_hh)[i]);
    }
  }
  return make_float4(sums[kInputGate], sums[kForgetGate], sums[kCellGate], sums[kOutputGate]);
}

// An element of an array that may be null: then `missing`.
template <typename Storage>
__device__ __forceinline__ float element_or(const void* array, int64_t i, float missing) {
  return array == nullptr ? missing : to_accumulator(static_cast<const Storage*>(array)[i]);
}

}  // namespace lstm_fused::cuda
