// SPDX-License-Identifier: BSD-3-Clause
// How a call is carried out: a pure function of the shape, the dtype and the device's facts.
// Free of CUDA's headers, so that every build can print and test plans.
#pragma once

#include <cstdint>
#include <string>

#include "common/lstm.h"
#include "cuda/device_facts.h"
#include "cuda/persistent/plan.h"
#include "cuda/workspace.h"

namespace lstm_fused::cuda {

enum class Variant {
  kStepwise,         // cuBLAS products and a pointwise kernel for each step
  kPersistentCta,    // the whole sequence in one launch, W_hh whole in every block
  kPersistentGroup,  // the whole sequence in one launch, W_hh split over a group of blocks
};

// What decides between the variants that can take a call.
enum class VariantChoice {
  kEstimates,   // those of a step's cycles
  kStepwise,    // no persistent kernel is taken
  kPersistent,  // one is, wherever it can, whatever the estimates say
};

// What the environment variable LSTM_FUSED_CUDA_VARIANT said when this library was loaded: "auto"
// (or nothing), "stepwise" or "persistent". Throws Error for anything else.
VariantChoice variant_choice();

// Puts one of these names in the variable's place; gives the one before. Throws Error for another
// name. For tests and checks, which switch within a process.
std::string set_variant(const std::string& name);

struct LstmPlan {
  Variant variant = Variant::kStepwise;
  PersistentPlan persistent;  // for a persistent variant
  bool allow_tf32 = false;
  bool composite = false;    // stepwise with projection: see stepwise/forward.h
  bool has_options = false;  // of the cell: with the kernels of csrc/cuda/options
  // Forward: x·W_ihᵀ goes to where the activated gates are saved, if they have its type.
  bool preactivations_in_gates = false;
  int64_t recurrence_bytes = 0;  // RecurrenceArgs::workspace
  int64_t workspace_bytes = 0;   // for the whole call, but for the weight gradients
  std::string reason;            // why this variant
};

// What a plan depends on, besides the shape and the dtype.
struct PlanSettings {
  bool allow_tf32 = false;
  bool training = false;   // the forward saves what the backward needs,
  bool recompute = false;  // but for the gates
  VariantChoice choice = VariantChoice::kEstimates;
  // Why a variant must not be taken on this device (see availability.h); empty: it may be.
  std::string cta_refusal, group_refusal;
  DeviceFacts facts;
};

// Throw Error where check_shape does.
LstmPlan make_forward_plan(const LstmShape& shape, DType dtype, const PlanSettings& settings);
LstmPlan make_backward_plan(const LstmShape& shape, DType dtype, const PlanSettings& settings);
// Where the cell has options; with layer normalisation nothing is chosen.
LstmPlan make_options_forward_plan(const LstmShape& shape, DType dtype,
                                   const PlanSettings& settings, bool has_norms);
LstmPlan make_options_backward_plan(const LstmShape& shape, DType dtype,
                                    const PlanSettings& settings, bool has_norms);

OptionsKernels options_kernels(const LstmPlan& plan, bool has_norms);

// The plan in one line.
std::string describe(const LstmPlan& plan, const LstmShape& shape, DType dtype);

// The plan for a shape in one line, and why; for lstm_fused.explain.
std::string explain_forward(const LstmShape& shape, DType dtype, const PlanSettings& settings);
std::string explain_backward(const LstmShape& shape, DType dtype, const PlanSettings& settings);
std::string explain_options(const LstmShape& shape, DType dtype, const PlanSettings& settings,
                            bool has_norms, bool backward);

}  // namespace lstm_fused::cuda
