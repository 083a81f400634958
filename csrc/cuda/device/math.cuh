// SPDX-License-Identifier: BSD-3-Clause
// The functions that common/lstm_cell.h asks for, on the device.
#pragma once

#include <cmath>

#include "common/lstm_cell.h"
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

 private:
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

}  // namespace lstm_fused::cuda
