// SPDX-License-Identifier: BSD-3-Clause
// Shapes and processors for tests of the CPU's plans.
#pragma once

#include <string>

#include "check.h"
#include "common/lstm.h"
#include "common/types.h"
#include "cpu/cpu_features.h"
#include "cpu/plan.h"

namespace lstm_fused::test {

using cpu::CpuFacts;
using cpu::Isa;
using cpu::LstmPlan;

constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16};

inline LstmShape shape_of(int64_t steps, int64_t batch, int64_t input, int64_t hidden,
                          int64_t projection = 0, int directions = 1) {
  return {steps,      batch,         input, hidden, projection ? projection : hidden,
          directions, projection > 0};
}

inline std::string name_of(const LstmShape& shape) {
  return text("T=", shape.steps, " N=", shape.batch, " D=", shape.input_size,
              " H=", shape.hidden_size, " P=", shape.output_size, " L=", shape.directions);
}

inline CpuFacts facts_of(Isa isa, int threads) {
  CpuFacts facts;
  facts.isa = isa;
  facts.threads = threads;
  return facts;
}

inline bool same(const LstmPlan& a, const LstmPlan& b) {
  return a.isa == b.isa && a.dot == b.dot && a.unpacked == b.unpacked &&
         a.row_groups == b.row_groups && a.team == b.team &&
         a.input_gemm_steps == b.input_gemm_steps;
}

inline bool mentions(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace lstm_fused::test
