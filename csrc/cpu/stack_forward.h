// SPDX-License-Identifier: BSD-3-Clause
// A stack of layers forward, without gradients: one after the other, or as a wavefront.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/lstm.h"
#include "cpu/cpu_features.h"
#include "cpu/plan.h"
#include "cpu/runtime/team.h"

namespace lstm_fused::cpu {

struct StackPlan {
  // Threads that go through different layers at the same time; 1: layers run one after the other,
  // each as its own plan says.
  int workers = 1;
  // Wavefront: steps of a layer that a worker takes at once, behind those of the layer before.
  int64_t steps = 0;
};

// For layers of the shapes of `layers`, from the first on. Throws Error where check_shape does.
StackPlan make_stack_plan(const std::vector<LstmShape>& layers, DType dtype, const CpuFacts& facts);
// The plan in one line, and why.
std::string explain_stack(const StackPlan& plan, const std::vector<LstmShape>& layers, DType dtype,
                          const CpuFacts& facts);

// Runs the layers, each of which reads the y of the one before as its x. The bits are those of
// lstm_forward, layer by layer, with plans of make_forward_plan.
void stack_forward(const std::vector<LstmForwardArgs>& layers, const StackPlan& plan,
                   const CpuFacts& facts, const Parallel& parallel);

}  // namespace lstm_fused::cpu
