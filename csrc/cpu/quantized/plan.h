// SPDX-License-Identifier: BSD-3-Clause
// How a layer of packed weights goes through its sequences: a pure function of the shape, the type
// of the weights and the processor's facts. Results do not depend on it, bit for bit.
#pragma once

#include "cpu/plan.h"
#include "cpu/quantized/kernels.h"

namespace lstm_fused::cpu::quantized {

struct QuantizedPlan {
  QuantizedIsa isa = QuantizedIsa::kBaseline;
  // row_groups, team and input_gemm_steps, at least 1, as for other weights; the rest is not read.
  LstmPlan division;
};

// Throws Error where check_shape does.
QuantizedPlan make_quantized_plan(const LstmShape& shape, WeightType type, const CpuFacts& facts);

// The plan in one line.
std::string describe_quantized(const QuantizedPlan& plan, WeightType type);

}  // namespace lstm_fused::cpu::quantized
