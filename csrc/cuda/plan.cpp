// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/plan.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <sstream>

#include "common/error.h"
#include "cuda/workspace.h"

namespace lstm_fused::cuda {
namespace {

using CanRunPersistent = bool (*)(const LstmShape&, DType, bool, const DeviceFacts&,
                                  PersistentPlan*, std::string*);

// Cycles of a step of the stepwise variant, to compare with those of a group: two launches, each of
// which begins about a microsecond after the one before, and the larger of two. What passes through
// L2: W_hh, and of each row the pre-activations and their product in the accumulator's type, the
// activated gates, c and h; a chip moves some 30 bytes a cycle for each SM (3942 of an H800, Luo et
// al. 2024). And the product, at half the rate of persistent_plan.cpp, since its N is small.
int64_t stepwise_cycles(const LstmShape& shape, DType dtype, bool allow_tf32,
                        const DeviceFacts& facts) {
  constexpr int64_t kLaunchCycles = 1700, kBytesOfSm = 30;
  const int64_t size = dtype_size(dtype), accumulator = accumulator_size(dtype);
  const int64_t weights = shape.directions * kGates * shape.hidden_size * shape.hidden_size;
  const int64_t row = kGates * (3 * accumulator + size) + 2 * accumulator + size;
  const int64_t bytes = weights * size + shape.directions * shape.hidden_size * shape.batch * row;
  const int64_t rate = size == 2 ? 1024 : allow_tf32 ? 512 : 128;  // multiply-adds of an SM
  const int64_t products = 2 * weights * shape.batch / rate;
  return 2 * kLaunchCycles + std::max(bytes / kBytesOfSm, products) / facts.sm_count;
}

// The variant and its workspace. A block that holds all of W_hh is taken wherever it can: it spares
// two launches a step, which take longer than the step. A group is, unless the estimates are
// against it.
void choose_variant(const LstmShape& shape, DType dtype, const PlanSettings& settings,
                    CanRunPersistent can_run_persistent, int64_t stepwise_bytes, LstmPlan& plan) {
  check_shape(shape);
  plan.allow_tf32 = settings.allow_tf32;
  if (!settings.allow_persistent) {
    plan.reason = "LSTM_FUSED_CUDA_VARIANT is stepwise";
  } else if (can_run_persistent(shape, dtype, settings.allow_tf32, settings.facts, &plan.persistent,
                                &plan.reason)) {
    const int64_t group = plan.persistent.step_cycles;
    const int64_t stepwise = stepwise_cycles(shape, dtype, settings.allow_tf32, settings.facts);
    const std::string figures = "estimated " + std::to_string(group) + " cycles a step, stepwise " +
                                std::to_string(stepwise);
    if (plan.persistent.group && group > stepwise) {
      plan.reason = "a group of blocks is slower: " + figures;
      plan.recurrence_bytes = stepwise_bytes;
      return;
    }
    plan.variant = plan.persistent.group ? Variant::kPersistentGroup : Variant::kPersistentCta;
    plan.recurrence_bytes = plan.persistent.workspace_bytes;
    plan.reason = plan.persistent.group ? "W_hh fits into a group of blocks, " + figures
                                        : "W_hh fits into a block";
    return;
  }
  plan.recurrence_bytes = stepwise_bytes;
}

std::string bytes_text(int64_t bytes) {
  const bool mebibytes = bytes >= 1 << 20;
  char text[32];
  std::snprintf(text, sizeof text, "%.1f %s",
                static_cast<double>(bytes) / (mebibytes ? 1 << 20 : 1 << 10),
                mebibytes ? "MiB" : "KiB");
  return text;
}

// `step`: what runs in a step of the stepwise variant, for both directions at once.
std::string describe(const LstmPlan& plan, const LstmShape& shape, DType dtype, const char* step) {
  std::ostringstream text;
  if (plan.variant == Variant::kStepwise) {
    text << "stepwise, " << step << " a step"
         << (shape.directions == 2 ? " for both directions" : "") << ", "
         << (dtype == DType::kFloat32 && plan.allow_tf32 ? "TF32" : dtype_name(dtype))
         << " products";
  } else {
    text << describe(plan.persistent);
  }
  text << ", workspace " << bytes_text(plan.workspace_bytes);
  return text.str();
}

}  // namespace

bool allows_persistent() {
  const char* value = std::getenv("LSTM_FUSED_CUDA_VARIANT");
  const std::string variant = value == nullptr ? "" : value;
  LSTM_CHECK(variant.empty() || variant == "auto" || variant == "stepwise",
             "LSTM_FUSED_CUDA_VARIANT must be auto or stepwise, got ", variant);
  return variant != "stepwise";
}

LstmPlan make_forward_plan(const LstmShape& shape, DType dtype, const PlanSettings& settings) {
  LstmPlan plan;
  choose_variant(shape, dtype, settings, can_run_persistent_forward,
                 stepwise_forward_workspace(shape, dtype, settings.training).bytes, plan);
  plan.preactivations_in_gates =
      settings.training && !settings.recompute && dtype_size(dtype) == accumulator_size(dtype);
  plan.workspace_bytes =
      forward_workspace(shape, dtype, plan.preactivations_in_gates, plan.recurrence_bytes).bytes;
  return plan;
}

LstmPlan make_backward_plan(const LstmShape& shape, DType dtype, const PlanSettings& settings) {
  LstmPlan plan;
  choose_variant(shape, dtype, settings, can_run_persistent_backward,
                 stepwise_backward_workspace(shape, dtype).bytes, plan);
  plan.workspace_bytes = plan.recurrence_bytes;
  return plan;
}

std::string describe_forward(const LstmPlan& plan, const LstmShape& shape, DType dtype) {
  return describe(plan, shape, dtype,
                  shape.projection ? "2 GEMMs and 1 kernel" : "1 GEMM and 1 kernel");
}

std::string describe_backward(const LstmPlan& plan, const LstmShape& shape, DType dtype) {
  return describe(plan, shape, dtype,
                  shape.projection ? "2 GEMMs and 2 kernels" : "1 GEMM and 1 kernel");
}

std::string explain_forward(const LstmShape& shape, DType dtype, const PlanSettings& settings) {
  const LstmPlan plan = make_forward_plan(shape, dtype, settings);
  return describe_forward(plan, shape, dtype) + " (" + plan.reason + ")";
}

std::string explain_backward(const LstmShape& shape, DType dtype, const PlanSettings& settings) {
  const LstmPlan plan = make_backward_plan(shape, dtype, settings);
  return describe_backward(plan, shape, dtype) + " (" + plan.reason + ")";
}

}  // namespace lstm_fused::cuda
