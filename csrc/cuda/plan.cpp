// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/plan.h"

#include <cstdio>
#include <cstdlib>
#include <sstream>

#include "common/error.h"
#include "cuda/workspace.h"

namespace lstm_fused::cuda {
namespace {

using CanRunPersistent = bool (*)(const LstmShape&, DType, bool, const DeviceFacts&,
                                  PersistentPlan*, std::string*);

// The variant and its workspace. A persistent kernel is taken wherever one can run: it spares two
// launches a step, which take longer than the step.
void choose_variant(const LstmShape& shape, DType dtype, const PlanSettings& settings,
                    CanRunPersistent can_run_persistent, int64_t stepwise_bytes, LstmPlan& plan) {
  check_shape(shape);
  plan.allow_tf32 = settings.allow_tf32;
  if (!settings.allow_persistent) {
    plan.reason = "LSTM_FUSED_CUDA_VARIANT is stepwise";
  } else if (can_run_persistent(shape, dtype, settings.allow_tf32, settings.facts, &plan.persistent,
                                &plan.reason)) {
    plan.variant = plan.persistent.group ? Variant::kPersistentGroup : Variant::kPersistentCta;
    plan.recurrence_bytes = plan.persistent.workspace_bytes;
    plan.reason =
        plan.persistent.group ? "W_hh fits into a group of blocks" : "W_hh fits into a block";
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
  plan.preactivations_in_gates = settings.training && dtype_size(dtype) == accumulator_size(dtype);
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
