// SPDX-License-Identifier: BSD-3-Clause
// The functions that common/lstm_cell.h asks for, on the device.
#pragma once

#include <cmath>
#include <type_traits>

#include "common/lstm_cell.h"
#include "common/types.h"
#include "cuda/device/ptx.cuh"

namespace lstm_fused::cuda {

// In float, by the special function unit's 2^x and 1/x, whose errors are 2 and 1 ulp: branch-free,
// where a division by `/` calls a subroutine for denormal numbers, one lane after the other. Errors
// against exact results: sigmoid 2^-22 of 1, tanh 4 ulp; both keep NaN, and are 0, ±1 at ±infinity.
//
// NOTE: no tanh.approx, whose error of 2^-11 would stand out against the budgets of float32 and
// float16 in tests/kit/numeric.py.
struct DeviceMath {
  static LSTM_HOST_DEVICE float sigmoid(float x) {
    return ptx::reciprocal(1.0f + ptx::exp2(-kLog2E * x));
  }
  static LSTM_HOST_DEVICE float tanh(float x) {
    return tanh_of(x, ptx::reciprocal(1.0f + ptx::exp2(2 * kLog2E * fabsf(x))));
  }
  // The four gates of a cell. NOTE: stage by stage, so that the special function unit has all four
  // in flight; the compiler, short of registers, would take one after the other.
  static LSTM_HOST_DEVICE Gates<float> activate(float a_i, float a_f, float a_g, float a_o) {
    const float e_i = ptx::exp2(-kLog2E * a_i), e_f = ptx::exp2(-kLog2E * a_f);
    const float e_g = ptx::exp2(2 * kLog2E * fabsf(a_g)), e_o = ptx::exp2(-kLog2E * a_o);
    const float i = ptx::reciprocal(1.0f + e_i), f = ptx::reciprocal(1.0f + e_f);
    const float g = ptx::reciprocal(1.0f + e_g), o = ptx::reciprocal(1.0f + e_o);
    return {i, f, tanh_of(a_g, g), o};
  }
  static LSTM_HOST_DEVICE float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }

  static LSTM_HOST_DEVICE double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }
  static LSTM_HOST_DEVICE double tanh(double x) { return ::tanh(x); }
  static LSTM_HOST_DEVICE double multiply_add(double a, double b, double c) { return fma(a, b, c); }

  static constexpr float kLog2E = 1.44269504f;

  // tanh from x and 1 / (1 + e^2|x|); near 0, where their difference cancels, by the odd polynomial
  // whose largest relative error on [-0.55, 0.55] is least: 4e-8.
  static LSTM_HOST_DEVICE float tanh_of(float x, float part) {
    constexpr float kPolynomialEnd = 0.55f;
    const float square = x * x;
    float sum = fmaf(0x1.0d5034p-6f, square, -0x1.af7cccp-5f);
    sum = fmaf(sum, square, 0x1.10cef6p-3f);
    sum = fmaf(sum, square, -0x1.555452p-2f);
    const float near = fmaf(x * square, sum, x);
    const float far = copysignf(fmaf(-2.0f, part, 1.0f), x);
    return fabsf(x) < kPolynomialEnd ? near : far;
  }
};

// For states of 16 bits: tanh without the polynomial, within 2^-22 of 1 everywhere, a thousandth of
// what rounding to 16 bits takes; of arguments below that nothing is left.
struct HalfMath : DeviceMath {
  static LSTM_HOST_DEVICE float tanh(float x) {
    return fmaf(-2.0f, ptx::reciprocal(1.0f + ptx::exp2(2 * kLog2E * x)), 1.0f);
  }
};
template <typename Storage>
using CellMath = std::conditional_t<sizeof(Storage) == 2, HalfMath, DeviceMath>;

// The gates of a unit, whose biases are added as sums are scaled for 2^x: by the same FMA. In two
// steps, so that the special function unit has a stage of several cells in flight.
template <typename Storage>
class BiasedGates {
 public:
  BiasedGates() = default;
  // From the biases of gates i, f, g, o.
  LSTM_HOST_DEVICE explicit BiasedGates(const float (&bias)[kGates]) {
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) {
      bias_[gate] = is_exact_tanh(gate) ? bias[gate] : scale(gate) * bias[gate];
    }
  }

  // 2^x of a gate's scaled pre-activation, of which `sum` lacks the bias.
  LSTM_HOST_DEVICE float exponential(int gate, float sum) const {
    if (is_exact_tanh(gate)) return ptx::exp2(scale(gate) * fabsf(sum + bias_[gate]));
    return ptx::exp2(fmaf(scale(gate), sum, bias_[gate]));
  }
  // The gate, from the same sum and its `exponential`.
  LSTM_HOST_DEVICE float activate(int gate, float sum, float exponential) const {
    const float part = ptx::reciprocal(1.0f + exponential);
    if (is_exact_tanh(gate)) return DeviceMath::tanh_of(sum + bias_[gate], part);
    return gate == kCellGate ? fmaf(-2.0f, part, 1.0f) : part;
  }

 private:
  static LSTM_HOST_DEVICE constexpr bool is_exact_tanh(int gate) {
    return gate == kCellGate && sizeof(Storage) > 2;
  }
  static LSTM_HOST_DEVICE constexpr float scale(int gate) {
    return gate == kCellGate ? 2 * DeviceMath::kLog2E : -DeviceMath::kLog2E;
  }

  float bias_[kGates] = {};
};

}  // namespace lstm_fused::cuda
