// SPDX-License-Identifier: BSD-3-Clause
// The functions that common/lstm_cell.h asks for, on the device.
#pragma once

#include <cmath>

#include "common/lstm_cell.h"

namespace lstm_fused::cuda {

// NOTE: expf and tanhf, not __expf and tanh.approx: their errors of 2 ulp and of 2^-11 would stand
// out against the float32 budget of tests/kit/numeric.py.
struct DeviceMath {
  static LSTM_HOST_DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
  static LSTM_HOST_DEVICE double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }
  static LSTM_HOST_DEVICE float tanh(float x) { return tanhf(x); }
  static LSTM_HOST_DEVICE double tanh(double x) { return ::tanh(x); }
  static LSTM_HOST_DEVICE float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
  static LSTM_HOST_DEVICE double multiply_add(double a, double b, double c) { return fma(a, b, c); }
};

}  // namespace lstm_fused::cuda
