// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/plan.h"

#include <cstdio>
#include <limits>
#include <sstream>

#include "common/error.h"
#include "common/setting.h"
#include "cuda/persistent/group_plan.h"
#include "cuda/stepwise/cost.h"
#include "cuda/workspace.h"

namespace lstm_fused::cuda {
namespace {

// In the order of VariantChoice.
Setting variant_setting("LSTM_FUSED_CUDA_VARIANT", {"auto", "stepwise", "persistent"},
                        "auto, stepwise or persistent");

// With projection: one product a step, unless the estimates are against it, as they are where W_hh
// and W_hr have far fewer elements than their product, or steps are few.
void choose_products(const LstmShape& shape, DType dtype, bool backward,
                     const PlanSettings& settings, LstmPlan& plan) {
  const auto cycles = [&](bool composite) {
    return stepwise_cycles(shape, dtype, settings.allow_tf32, backward, composite, settings.facts);
  };
  const int64_t one = cycles(true), two = cycles(false);
  plan.composite = one < two;
  plan.reason += "; estimated " + std::to_string(one) + " cycles a step with W_hh·W_hr, " +
                 std::to_string(two) + " with one after the other";
}

// Puts a plan of groups in the place of one block's by FFMA, where its estimate is lower by more
// than an eighth: a step of one block takes as long as its SM has FFMA to issue, which groups share
// out. The eighth is for what groups take besides: a workspace to clear, and more SMs.
void prefer_groups(const LstmShape& shape, DType dtype, bool backward, const PlanSettings& settings,
                   bool has_options, PersistentPlan& plan, std::string& reason) {
  if (plan.group || plan.step_cycles == 0 || !settings.group_refusal.empty()) return;
  if (settings.choice != VariantChoice::kEstimates) return;
  PersistentPlan groups;
  std::string why_not;
  if (!can_run_groups(shape, dtype, settings.allow_tf32, has_options, backward, settings.facts,
                      &groups, &why_not) ||
      groups.step_cycles >= plan.step_cycles - plan.step_cycles / 8) {
    return;
  }
  reason = ", one block " + std::to_string(plan.step_cycles);
  plan = groups;
}

// Whether to take the persistent kernel that can take the call, and why. A block that holds all of
// W_hh is taken wherever it can, by tensor cores: it spares two launches a step, which take longer
// than the step. Others are, unless the estimates are against them: by more than a sixteenth for a
// block, for what it spares the host.
bool prefers_persistent(const LstmShape& shape, DType dtype, bool backward,
                        const PlanSettings& settings, bool has_options, PersistentPlan& persistent,
                        std::string* reason) {
  std::string one_block;
  prefer_groups(shape, dtype, backward, settings, has_options, persistent, one_block);
  const std::string& refusal = persistent.group ? settings.group_refusal : settings.cta_refusal;
  if (!refusal.empty()) {
    *reason = (persistent.group ? "groups of blocks are off on this device: "
                                : "kernels of one block are off on this device: ") +
              refusal;
    return false;
  }
  const std::string name = persistent.group ? "a group of blocks" : "a block";
  const int64_t cycles = persistent.step_cycles;
  if (cycles == 0) {
    *reason = "W_hh fits into " + name;
    return true;
  }
  const int64_t stepwise =
      stepwise_cycles(shape, dtype, settings.allow_tf32, backward, false, settings.facts);
  const std::string figures = "estimated " + std::to_string(cycles) + " cycles a step, stepwise " +
                              std::to_string(stepwise) + one_block;
  if (settings.choice == VariantChoice::kPersistent) {
    *reason = "LSTM_FUSED_CUDA_VARIANT is persistent; " + figures;
    return true;
  }
  const bool is_slower = cycles > stepwise + (persistent.group ? 0 : stepwise / 16);
  *reason = (is_slower ? name + " is slower: " : "W_hh fits into " + name + ", ") + figures;
  return !is_slower;
}

void choose_variant(const LstmShape& shape, DType dtype, bool backward,
                    const PlanSettings& settings, LstmPlan& plan) {
  check_shape(shape);
  check_facts(settings.facts);
  plan.allow_tf32 = settings.allow_tf32;
  const auto can_run_persistent =
      backward ? can_run_persistent_backward : can_run_persistent_forward;
  if (settings.choice == VariantChoice::kStepwise) {
    plan.reason = "LSTM_FUSED_CUDA_VARIANT is stepwise";
  } else if (can_run_persistent(shape, dtype, settings.allow_tf32, plan.has_options, settings.facts,
                                &plan.persistent, &plan.reason)) {
    if (prefers_persistent(shape, dtype, backward, settings, plan.has_options, plan.persistent,
                           &plan.reason)) {
      plan.variant = plan.persistent.group ? Variant::kPersistentGroup : Variant::kPersistentCta;
    }
    return;
  }
  if (shape.projection && !plan.has_options)
    choose_products(shape, dtype, backward, settings, plan);
}

// Whether gates are saved, in the type of pre-activations.
bool can_hold_preactivations(DType dtype, const PlanSettings& settings) {
  return settings.training && !settings.recompute && dtype_size(dtype) == accumulator_size(dtype);
}

LstmPlan options_plan(const LstmShape& shape, DType dtype, bool backward,
                      const PlanSettings& settings, bool has_norms) {
  LstmPlan plan;
  plan.has_options = true;
  if (!has_norms) {
    choose_variant(shape, dtype, backward, settings, plan);
    return plan;
  }
  check_shape(shape);
  check_facts(settings.facts);
  plan.allow_tf32 = settings.allow_tf32;
  plan.reason = "layer normalisation, whose sums go across blocks, has stepwise kernels alone";
  return plan;
}

std::string bytes_text(int64_t bytes) {
  const bool mebibytes = bytes >= 1 << 20;
  char text[32];
  std::snprintf(text, sizeof text, "%.1f %s",
                static_cast<double>(bytes) / (mebibytes ? 1 << 20 : 1 << 10),
                mebibytes ? "MiB" : "KiB");
  return text;
}

}  // namespace

void check_facts(const DeviceFacts& facts) {
  constexpr int kMaxCapability = 1000, kMaxSms = 1 << 16;
  constexpr int64_t kMaxBytes = int64_t{1} << 40;
  const auto in_range = [](const char* name, int64_t value, int64_t least, int64_t most) {
    LSTM_CHECK(value >= least && value <= most, "device facts: ", name, " must be between ", least,
               " and ", most, ", got ", value);
  };
  in_range("major", facts.major, 0, kMaxCapability);
  in_range("minor", facts.minor, 0, kMaxCapability);
  in_range("sm_count", facts.sm_count, 1, kMaxSms);
  in_range("shared_per_sm", facts.shared_per_sm, 0, kMaxBytes);
  in_range("shared_per_block", facts.shared_per_block, 0, kMaxBytes);
  in_range("registers_per_sm", facts.registers_per_sm, 0, std::numeric_limits<int>::max());
  in_range("max_threads_per_sm", facts.max_threads_per_sm, 0, std::numeric_limits<int>::max());
  in_range("l2_bytes", facts.l2_bytes, 0, kMaxBytes);
}

VariantChoice variant_choice() { return static_cast<VariantChoice>(variant_setting.index()); }

std::string set_variant(const std::string& name) { return variant_setting.set(name); }

LstmPlan make_forward_plan(const LstmShape& shape, DType dtype, const PlanSettings& settings) {
  LstmPlan plan;
  choose_variant(shape, dtype, false, settings, plan);
  plan.preactivations_in_gates = can_hold_preactivations(dtype, settings);
  plan.recurrence_bytes =
      plan.variant == Variant::kStepwise
          ? stepwise_forward_workspace(shape, dtype, settings.training, plan.composite).bytes
          : plan.persistent.workspace_bytes;
  plan.workspace_bytes =
      forward_workspace(shape, dtype, plan.preactivations_in_gates, plan.recurrence_bytes).bytes;
  return plan;
}

LstmPlan make_backward_plan(const LstmShape& shape, DType dtype, const PlanSettings& settings) {
  LstmPlan plan;
  choose_variant(shape, dtype, true, settings, plan);
  plan.recurrence_bytes = plan.variant == Variant::kStepwise
                              ? stepwise_backward_workspace(shape, dtype, plan.composite).bytes
                              : plan.persistent.workspace_bytes;
  plan.workspace_bytes = plan.recurrence_bytes;
  return plan;
}

LstmPlan make_options_forward_plan(const LstmShape& shape, DType dtype,
                                   const PlanSettings& settings, bool has_norms) {
  LstmPlan plan = options_plan(shape, dtype, /*backward=*/false, settings, has_norms);
  plan.preactivations_in_gates = can_hold_preactivations(dtype, settings);
  plan.workspace_bytes =
      options_forward_workspace(shape, dtype, settings.training, plan.preactivations_in_gates,
                                options_kernels(plan, has_norms))
          .bytes;
  return plan;
}

LstmPlan make_options_backward_plan(const LstmShape& shape, DType dtype,
                                    const PlanSettings& settings, bool has_norms) {
  LstmPlan plan = options_plan(shape, dtype, /*backward=*/true, settings, has_norms);
  plan.recurrence_bytes =
      options_backward_workspace(shape, dtype, options_kernels(plan, has_norms)).bytes;
  plan.workspace_bytes = plan.recurrence_bytes;
  return plan;
}

OptionsKernels options_kernels(const LstmPlan& plan, bool has_norms) {
  OptionsKernels kernels;
  kernels.stepwise = plan.variant == Variant::kStepwise;
  kernels.has_norms = has_norms;
  kernels.recurrence_bytes = plan.persistent.workspace_bytes;
  return kernels;
}

std::string describe(const LstmPlan& plan, const LstmShape& shape, DType dtype) {
  std::ostringstream text;
  if (plan.variant == Variant::kStepwise) {
    const bool one_product = !shape.projection || plan.composite;
    // With options a kernel follows on each product.
    const bool one_kernel = one_product || !plan.has_options;
    text << "stepwise, " << (one_product ? "1 GEMM" : "2 GEMMs") << " and "
         << (one_kernel ? "1 kernel" : "2 kernels") << " a step"
         << (shape.directions == 2 ? " for both directions" : "") << ", "
         << (dtype == DType::kFloat32 && plan.allow_tf32 ? "TF32" : dtype_name(dtype))
         << " products";
  } else {
    text << describe(plan.persistent) << (plan.has_options ? ", with options of the cell" : "");
  }
  text << ", workspace " << bytes_text(plan.workspace_bytes);
  return text.str();
}

std::string explain_forward(const LstmShape& shape, DType dtype, const PlanSettings& settings) {
  const LstmPlan plan = make_forward_plan(shape, dtype, settings);
  return describe(plan, shape, dtype) + " (" + plan.reason + ")";
}

std::string explain_backward(const LstmShape& shape, DType dtype, const PlanSettings& settings) {
  const LstmPlan plan = make_backward_plan(shape, dtype, settings);
  return describe(plan, shape, dtype) + " (" + plan.reason + ")";
}

std::string explain_options(const LstmShape& shape, DType dtype, const PlanSettings& settings,
                            bool has_norms, bool backward) {
  const LstmPlan plan = backward ? make_options_backward_plan(shape, dtype, settings, has_norms)
                                 : make_options_forward_plan(shape, dtype, settings, has_norms);
  return describe(plan, shape, dtype) + " (" + plan.reason + ")";
}

}  // namespace lstm_fused::cuda
