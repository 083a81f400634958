// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/stepwise/cost.h"

#include <algorithm>

namespace lstm_fused::cuda {
namespace {

// A launch begins about a microsecond after the one before (0.9 to 1.1 in captured graphs, measured
// by others): as many cycles as the clock has MHz. Boost clocks of the A100, RTX 30 (and others),
// RTX 40, H100, B200 and RTX 50.
int64_t launch_cycles(const DeviceFacts& facts) {
  switch (facts.major * 10 + facts.minor) {
    case 80:
      return 1410;
    case 89:
      return 2500;
    case 90:
      return 1830;
    case 100:
    case 103:
      return 1850;
    case 120:
    case 121:
      return 2400;
    default:
      return 1700;
  }
}

// Bytes that pass through L2 in a cycle, for each SM: Luo et al. 2024 measured 3942 on an H800 of
// 132 SMs.
constexpr int64_t kL2BytesPerSm = 30;
static_assert(kL2BytesPerSm == (3942 + 132 / 2) / 132, "the measurement, rounded");

// Multiply-adds of an SM in a cycle. float64: its tensor cores or units at compute capability x.0
// up to 10; other chips have two units of them.
int64_t multiply_adds(DType dtype, bool allow_tf32, const DeviceFacts& facts) {
  switch (dtype) {
    case DType::kFloat64:
      return facts.minor == 0 && facts.major <= 10 ? 64 : 2;
    case DType::kFloat32:
      return allow_tf32 ? 512 : 128;
    default:
      return 1024;
  }
}

// Bytes of a row's arrays for each unit. Forward: the recurrent GEMM reads h_prev and adds to the
// pre-activations; the kernel reads these, writes the activated gates, y and the next h_prev, and
// moves c. Backward: the kernel reads gates, two cs and grad_y, writes grad_gates, and moves c's
// gradient; the product reads grad_gates, and writes what the kernel reads.
int64_t unit_bytes(DType dtype, bool backward) {
  const int64_t size = dtype_size(dtype), accumulator = accumulator_size(dtype);
  return backward ? (3 * kGates + 1) * size + 6 * accumulator
                  : kGates * (3 * accumulator + size) + 3 * size + 2 * accumulator;
}

}  // namespace

int64_t stepwise_cycles(const LstmShape& shape, DType dtype, bool allow_tf32, bool backward,
                        bool composite, const DeviceFacts& facts) {
  const int64_t hidden = shape.hidden_size, output = shape.output_size, rows = shape.batch;
  const int64_t size = dtype_size(dtype), gates = kGates * hidden;
  const int64_t projection = shape.projection ? output * hidden : 0;

  // Each step: its products, which have few rows, at half the rate.
  const bool two_products = shape.projection && !composite;
  const int64_t weights = composite ? gates * hidden : gates * output + projection;
  int64_t launches = (two_products ? 3 : 2) * launch_cycles(facts);
  int64_t bytes = weights * size + rows * hidden * unit_bytes(dtype, backward);
  int64_t products = 2 * weights * rows;
  if (two_products) bytes += 2 * rows * output * size;

  // A step's part of what is multiplied once: W_hh·W_hr; and in the backward, where two products
  // make it in passing, all steps' grad_gates·W_hh.
  if (composite) {
    const int64_t steps = std::max<int64_t>(shape.steps, 1);
    launches += shape.directions * launch_cycles(facts) / steps;
    products += gates * projection / steps;
    bytes += (gates * (output + hidden) + projection) * size / steps;
    if (backward) {
      products += rows * gates * output;
      bytes += rows * (gates + output) * size;
    }
  }
  const int64_t rate = multiply_adds(dtype, allow_tf32, facts);
  return launches +
         shape.directions * std::max(bytes / kL2BytesPerSm, products / rate) / facts.sm_count;
}

}  // namespace lstm_fused::cuda
