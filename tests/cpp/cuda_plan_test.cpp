// SPDX-License-Identifier: BSD-3-Clause
// Plans of the CUDA kernels, for the facts of devices that this machine need not have: what holds
// for all of them, and what they say of themselves.
#include <algorithm>
#include <cstdlib>
#include <string>

#include "check.h"
#include "common/types.h"
#include "cuda/plan.h"
#include "cuda/workspace.h"

namespace lstm_fused::test {
namespace {

using cuda::DeviceFacts;
using cuda::LstmPlan;
using cuda::PlanSettings;
using cuda::Variant;
using cuda::VariantChoice;

struct NamedFacts {
  const char* name;
  DeviceFacts facts;
};

// From the CUDA programming guide's table of compute capabilities, and the products' data sheets.
const NamedFacts kDevices[] = {
    {"A100", {8, 0, 108, 164 << 10, 163 << 10, 65536, 2048, 40 << 20}},
    {"RTX 4090", {8, 9, 128, 100 << 10, 99 << 10, 65536, 1536, 72 << 20}},
    {"H100", {9, 0, 132, 228 << 10, 227 << 10, 65536, 2048, 50 << 20}},
    {"B200", {10, 0, 148, 228 << 10, 227 << 10, 65536, 2048, 126 << 20}},
    {"RTX 5090", {12, 0, 170, 100 << 10, 99 << 10, 65536, 1536, 96 << 20}},
};
constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16};

LstmShape shape_of(int64_t steps, int64_t batch, int64_t input, int64_t hidden,
                   int64_t projection = 0, int directions = 1) {
  return {steps,      batch,         input, hidden, projection ? projection : hidden,
          directions, projection > 0};
}

PlanSettings settings_of(const DeviceFacts& facts, bool training = true) {
  PlanSettings settings;
  settings.facts = facts;
  settings.training = training;
  return settings;
}

void check_parts(int64_t total, std::initializer_list<int64_t> parts) {
  int64_t before = 0;
  for (int64_t part : parts) {
    CHECK_EQ(part % 256, 0);
    CHECK_LE(before, part);
    before = part;
  }
  CHECK_LE(before, total);
}

void test_bounds() {
  for (const NamedFacts& device : kDevices) {
    for (DType dtype : kDTypes) {
      for (int64_t batch : {0, 1, 13, 500}) {
        for (int64_t hidden : {1, 17, 128, 1000, 5000}) {
          for (int directions : {1, 2}) {
            for (int64_t projection : {int64_t{0}, (hidden + 2) / 3}) {
              for (bool training : {false, true}) {
                const LstmShape shape = shape_of(7, batch, 40, hidden, projection, directions);
                const Scope scope(device.name, " ", dtype_name(dtype), " N=", batch, " H=", hidden,
                                  " P=", projection, " L=", directions);
                const PlanSettings settings = settings_of(device.facts, training);
                const LstmPlan forward = cuda::make_forward_plan(shape, dtype, settings);
                CHECK_LE(forward.recurrence_bytes, forward.workspace_bytes);
                CHECK(!forward.reason.empty());
                // Gates of 16 bits have no room for sums of 32.
                CHECK_EQ(forward.preactivations_in_gates,
                         training && (dtype == DType::kFloat32 || dtype == DType::kFloat64));
                const int64_t preactivations =
                    7 * batch * 4 * hidden * directions * accumulator_size(dtype);
                if (!forward.preactivations_in_gates) {
                  CHECK_LE(preactivations, forward.workspace_bytes);
                }
                const LstmPlan backward = cuda::make_backward_plan(shape, dtype, settings);
                CHECK_LE(backward.recurrence_bytes, backward.workspace_bytes);
                CHECK(!backward.reason.empty());
                // What no persistent kernel can do.
                if (dtype == DType::kFloat64 || projection > 0 || hidden == 5000) {
                  CHECK(forward.variant == Variant::kStepwise);
                  CHECK(backward.variant == Variant::kStepwise);
                }
              }
            }
          }
        }
      }
    }
  }
}

void test_workspaces() {
  for (DType dtype : kDTypes) {
    for (int64_t projection : {0, 5}) {
      const LstmShape shape = shape_of(7, 3, 11, 17, projection, 2);
      for (bool composite : {false, true}) {
        if (composite && projection == 0) continue;
        const auto forward = cuda::stepwise_forward_workspace(shape, dtype, false, composite);
        check_parts(forward.bytes,
                    {forward.prev_cell_output, forward.h_prev, forward.first_recurrent,
                     forward.cell, forward.cell_output, forward.w_hh, forward.w_hr});
        // Cell states that are saved need no workspace.
        CHECK_LT(cuda::stepwise_forward_workspace(shape, dtype, true, composite).bytes,
                 forward.bytes);
        const auto backward = cuda::stepwise_backward_workspace(shape, dtype, composite);
        check_parts(backward.bytes, {backward.recurrent, backward.cell, backward.grad_cell_output,
                                     backward.grad_last_cell_output, backward.grad_h_prev,
                                     backward.w_hh, backward.w_hr});
      }
      const auto dense = cuda::weight_gradient_workspace(shape, dtype, false, false, 1);
      const auto reset = cuda::weight_gradient_workspace(shape, dtype, false, true, 1);
      const auto ragged = cuda::weight_gradient_workspace(shape, dtype, true, false, 3);
      check_parts(ragged.bytes, {ragged.input, ragged.h_prev, ragged.sums});
      const auto rebuild = cuda::rebuild_workspace(shape, dtype, false, true);
      check_parts(rebuild.bytes, {rebuild.preactivations, rebuild.h_prev});
      CHECK_LT(dense.bytes, reset.bytes);
      CHECK_LT(reset.bytes, ragged.bytes);

      cuda::LayerBackwardOptions options;
      options.recurrence_bytes = 1000;
      const auto least = cuda::layer_backward_workspace(shape, dtype, options);
      check_parts(least.bytes,
                  {least.grad_gates, least.grad_output, least.cell_output, least.shared});
      CHECK_EQ(least.bytes - least.shared, 1024);
      // What runs one after the other shares its memory.
      options.has_reset_mask = options.rebuilds_gates = options.wants_weights = true;
      options.samples = 3;
      const auto most = cuda::layer_backward_workspace(shape, dtype, options);
      const auto weights = cuda::weight_gradient_workspace(shape, dtype, false, true, 3);
      CHECK_EQ(most.bytes - most.shared, std::max({int64_t{1024}, rebuild.bytes, weights.bytes}));
    }
  }
  // Pre-activations lie in the gates, or, of 16-bit types, are made of some steps at a time.
  const LstmShape middle = shape_of(300, 64, 8, 256);
  CHECK_EQ(cuda::rebuild_workspace(middle, DType::kFloat32, false, false).bytes, 0);
  const auto some = cuda::rebuild_workspace(middle, DType::kBFloat16, false, false);
  CHECK_EQ(some.steps_per_product, 38);
  CHECK_EQ(some.bytes, int64_t{38} * 64 * 4 * 256 * 4);
  // 64-bit sizes.
  const LstmShape large = shape_of(4096, 4096, 1024, 4096, 0, 2);
  CHECK_LT(int64_t{4096} * 4096 * 4 * 4096 * 2 * 4,
           cuda::make_forward_plan(large, DType::kBFloat16, settings_of(kDevices[0].facts))
               .workspace_bytes);
}

// Where the cell has options.
void test_options() {
  const PlanSettings settings = settings_of(kDevices[2].facts);
  for (DType dtype : kDTypes) {
    for (int64_t projection : {0, 5}) {
      const LstmShape shape = shape_of(7, 3, 11, 17, projection, 2);
      for (bool norms : {false, true}) {
        cuda::OptionsKernels kernels;
        kernels.has_norms = norms;
        const auto forward = cuda::options_forward_workspace(shape, dtype, false, false, kernels);
        check_parts(forward.bytes, {forward.preactivations, forward.recurrence, forward.recurrent,
                                    forward.output_parts, forward.entering, forward.cell,
                                    forward.cell_output, forward.h, forward.w_hh, forward.w_hr});
        CHECK_LT(cuda::options_forward_workspace(shape, dtype, true, true, kernels).bytes,
                 forward.bytes - int64_t{2} * 7 * 3 * 4 * 17 * accumulator_size(dtype));
        const auto backward = cuda::options_backward_workspace(shape, dtype, kernels);
        check_parts(
            backward.bytes,
            {backward.recurrence, backward.product, backward.dh, backward.cell, backward.carry,
             backward.sums, backward.grad_peephole, backward.grad_reset_h, backward.grad_reset_c,
             backward.grad_gains, backward.grad_cell_norm, backward.grad_bias, backward.sums_end,
             backward.scratch, backward.w_hh, backward.w_hr});
        CHECK_LT(backward.sums, backward.sums_end);

        cuda::OptionsLayerNeeds needs;
        needs.kernels = kernels;
        const auto least = cuda::options_layer_workspace(shape, dtype, needs);
        CHECK_EQ(least.bytes - least.shared, backward.bytes);
        needs.has_lengths = needs.wants_weights = needs.changes_h = true;
        const auto most = cuda::options_layer_workspace(shape, dtype, needs);
        check_parts(most.bytes, {most.grad_gates, most.grad_recurrent, most.grad_output,
                                 most.cell_output, most.recurrent_inputs, most.shared});
        CHECK_LT(least.bytes, most.bytes);

        const LstmPlan plan = cuda::make_options_forward_plan(shape, dtype, settings, norms);
        const bool persistent = !norms && projection == 0 && dtype != DType::kFloat64;
        CHECK(plan.variant == (persistent ? Variant::kPersistentCta : Variant::kStepwise));
        CHECK_EQ(plan.preactivations_in_gates, dtype_size(dtype) == accumulator_size(dtype));
        kernels.stepwise = !persistent;
        CHECK_EQ(plan.workspace_bytes,
                 cuda::options_forward_workspace(shape, dtype, true, plan.preactivations_in_gates,
                                                 kernels)
                     .bytes);
        for (bool backwards : {false, true}) {
          const std::string text = cuda::explain_options(shape, dtype, settings, norms, backwards);
          CHECK_EQ(text.find(persistent   ? "persistent, "
                             : projection ? "stepwise, 2 GEMMs and 2 kernels a step for both"
                                          : "stepwise, 1 GEMM and 1 kernel a step for both"),
                   size_t{0});
        }
      }
    }
  }
}

void test_texts() {
  const DeviceFacts& h100 = kDevices[2].facts;
  const LstmShape shape = shape_of(7, 3, 11, 4096, 0, 2);
  PlanSettings settings = settings_of(h100);
  CHECK(cuda::explain_forward(shape, DType::kFloat32, settings)
            .find("stepwise, 1 GEMM and 1 kernel a step for both directions, float32 products") ==
        0);
  settings.allow_tf32 = true;
  CHECK(cuda::explain_forward(shape, DType::kFloat32, settings).find("TF32") != std::string::npos);
  CHECK(cuda::explain_forward(shape, DType::kFloat64, settings).find("TF32") == std::string::npos);
  const LstmShape projected = shape_of(7, 3, 11, 16, 4);
  CHECK(cuda::explain_backward(projected, DType::kFloat32, settings)
            .find("stepwise, 1 GEMM and 1 kernel a step, ") == 0);
  CHECK(cuda::explain_forward(shape_of(7, 3, 11, 4096, 64), DType::kFloat32, settings)
            .find("stepwise, 2 GEMMs and 1 kernel a step, ") == 0);

  // A refused persistent kernel is no choice, and no refusal is without a reason.
  settings.choice = VariantChoice::kStepwise;
  const LstmPlan plan = cuda::make_forward_plan(shape_of(7, 3, 11, 16), DType::kFloat32, settings);
  CHECK(plan.variant == Variant::kStepwise);
  CHECK_EQ(plan.reason, "LSTM_FUSED_CUDA_VARIANT is stepwise");
}

// A group is taken where the estimates are for it: always at small batches.
void test_choice() {
  const auto variant = [](const DeviceFacts& facts, DType dtype, int64_t batch, int64_t hidden,
                          bool backward) {
    const LstmShape shape = shape_of(100, batch, 64, hidden);
    const PlanSettings settings = settings_of(facts);
    const LstmPlan plan = backward ? cuda::make_backward_plan(shape, dtype, settings)
                                   : cuda::make_forward_plan(shape, dtype, settings);
    CHECK((plan.reason.find(" cycles a step, stepwise ") != std::string::npos) ==
          (plan.persistent.group || dtype == DType::kFloat32));
    return plan.variant;
  };
  for (const NamedFacts& device : kDevices) {
    const Scope scope(device.name);
    for (bool backward : {false, true}) {
      CHECK(variant(device.facts, DType::kBFloat16, 16, 768, backward) ==
            Variant::kPersistentGroup);
      for (const int64_t hidden : {16, 64, 128}) {
        CHECK(variant(device.facts, DType::kBFloat16, 1000, hidden, backward) ==
              Variant::kPersistentCta);
      }
      // One block by FFMA takes as long as it has work, which groups share out as long as there are
      // SMs for them.
      CHECK(variant(device.facts, DType::kFloat32, 8, 40, backward) == Variant::kPersistentCta);
      CHECK(variant(device.facts, DType::kFloat32, 1000, 40, backward) == Variant::kPersistentCta);
      for (const int64_t hidden : {64, 96}) {
        for (const int64_t batch : {8, 64}) {
          CHECK(variant(device.facts, DType::kFloat32, batch, hidden, backward) ==
                Variant::kPersistentGroup);
        }
      }
    }
    CHECK(variant(device.facts, DType::kFloat32, 16, 256, false) == Variant::kPersistentGroup);
  }
  const DeviceFacts &a100 = kDevices[0].facts, &h100 = kDevices[2].facts;
  CHECK(variant(a100, DType::kBFloat16, 64, 1024, true) == Variant::kStepwise);
  CHECK(variant(h100, DType::kBFloat16, 64, 1024, false) == Variant::kPersistentGroup);
}

// W_hh·W_hr is multiplied out where a launch takes longer than what that costs: not where W_hh and
// W_hr have far fewer elements, nor for few steps, nor where a chip is slow at the dtype.
void test_projection() {
  for (const NamedFacts& device : kDevices) {
    for (bool backward : {false, true}) {
      const Scope scope(device.name, backward ? " backward" : " forward");
      const auto takes_one = [&](DType dtype, int64_t steps, int64_t batch, int64_t hidden,
                                 int64_t projection) {
        const LstmShape shape = shape_of(steps, batch, 64, hidden, projection);
        const PlanSettings settings = settings_of(device.facts);
        const LstmPlan plan = backward ? cuda::make_backward_plan(shape, dtype, settings)
                                       : cuda::make_forward_plan(shape, dtype, settings);
        CHECK(plan.reason.find(" cycles a step with W_hh·W_hr, ") != std::string::npos);
        return plan.composite;
      };
      CHECK(takes_one(DType::kFloat32, 100, 1, 128, 64));
      CHECK(takes_one(DType::kFloat32, 100, 16, 256, 128));
      CHECK(takes_one(DType::kBFloat16, 100, 16, 512, 256));
      CHECK(!takes_one(DType::kBFloat16, 100, 16, 2048, 640));
      CHECK(!takes_one(DType::kFloat32, 100, 64, 1024, 128));
      CHECK(!takes_one(DType::kFloat32, 1, 1, 128, 64));
      CHECK(!takes_one(DType::kFloat32, 2, 1, 512, 128));
      // Gaming chips have two float64 units an SM.
      const bool is_slow = device.facts.minor != 0 || device.facts.major == 12;
      CHECK_EQ(takes_one(DType::kFloat64, 100, 16, 256, 64), !is_slow);
    }
  }
  // The backward costs more where rows are many: grad_gates are read once more.
  const LstmShape shape = shape_of(100, 64, 64, 1024, 512);
  const PlanSettings settings = settings_of(kDevices[2].facts);
  CHECK(cuda::make_forward_plan(shape, DType::kBFloat16, settings).composite);
  CHECK(!cuda::make_backward_plan(shape, DType::kBFloat16, settings).composite);
  CHECK(!cuda::make_forward_plan(shape_of(7, 3, 11, 16), DType::kFloat64, settings).composite);
}

// What has failed on a device is not taken there, and a choice of the user's is above the
// estimates.
void test_refusals() {
  const LstmShape small = shape_of(100, 16, 64, 64), middle = shape_of(100, 16, 64, 256);
  for (const auto make_plan : {cuda::make_forward_plan, cuda::make_backward_plan}) {
    PlanSettings settings = settings_of(kDevices[2].facts);
    settings.choice = VariantChoice::kPersistent;
    CHECK(make_plan(small, DType::kFloat16, settings).variant == Variant::kPersistentCta);
    CHECK(make_plan(middle, DType::kFloat16, settings).variant == Variant::kPersistentGroup);
    settings.group_refusal = "it hung";
    CHECK(make_plan(small, DType::kFloat16, settings).variant == Variant::kPersistentCta);
    LstmPlan plan = make_plan(middle, DType::kFloat16, settings);
    CHECK(plan.variant == Variant::kStepwise);
    CHECK_EQ(plan.reason, "groups of blocks are off on this device: it hung");
    CHECK_EQ(plan.recurrence_bytes, make_plan(middle, DType::kFloat16,
                                              [&] {
                                                PlanSettings stepwise = settings;
                                                stepwise.choice = VariantChoice::kStepwise;
                                                return stepwise;
                                              }())
                                        .recurrence_bytes);
    settings.cta_refusal = "it was wrong";
    plan = make_plan(small, DType::kFloat16, settings);
    CHECK(plan.variant == Variant::kStepwise);
    CHECK_EQ(plan.reason, "kernels of one block are off on this device: it was wrong");
    // What no persistent kernel can do has its own reason.
    plan = make_plan(small, DType::kFloat64, settings);
    CHECK_EQ(plan.reason, "persistent kernels have no float64");
  }
  // Rows so many that the estimates are against a group.
  const LstmShape large = shape_of(100, 64, 64, 1024);
  PlanSettings settings = settings_of(kDevices[0].facts);
  CHECK(cuda::make_backward_plan(large, DType::kBFloat16, settings).variant == Variant::kStepwise);
  settings.choice = VariantChoice::kPersistent;
  const LstmPlan plan = cuda::make_backward_plan(large, DType::kBFloat16, settings);
  CHECK(plan.variant == Variant::kPersistentGroup);
  CHECK(plan.reason.find("LSTM_FUSED_CUDA_VARIANT is persistent; estimated ") == 0);
}

void test_variant() {
  CHECK(cuda::variant_choice() == VariantChoice::kEstimates);
  CHECK_EQ(cuda::set_variant("stepwise"), "auto");
  CHECK(cuda::variant_choice() == VariantChoice::kStepwise);
  CHECK_EQ(error_of([] { cuda::set_variant("cudnn"); }),
           "LSTM_FUSED_CUDA_VARIANT must be auto, stepwise or persistent, got cudnn");
  CHECK(cuda::variant_choice() == VariantChoice::kStepwise);
  CHECK_EQ(cuda::set_variant("persistent"), "stepwise");
  CHECK(cuda::variant_choice() == VariantChoice::kPersistent);
  CHECK_EQ(cuda::set_variant("auto"), "persistent");
  CHECK(cuda::variant_choice() == VariantChoice::kEstimates);
}

void test_errors() {
  const PlanSettings settings = settings_of(kDevices[0].facts);
  PlanSettings no_sms = settings;
  no_sms.facts.sm_count = 0;
  for (const bool projection : {false, true}) {
    const LstmShape shape = shape_of(9, 3, 5, 700, projection ? 4 : 0);
    CHECK_EQ(error_of([&] { cuda::make_forward_plan(shape, DType::kFloat32, no_sms); }),
             "device facts: sm_count must be between 1 and 65536, got 0");
    CHECK_EQ(error_of([&] { cuda::make_backward_plan(shape, DType::kFloat32, no_sms); }),
             "device facts: sm_count must be between 1 and 65536, got 0");
  }
  CHECK(!error_of([&] {
           cuda::make_forward_plan(shape_of(1, 1, 1, 0), DType::kFloat32, settings);
         }).empty());
  CHECK(!error_of([&] {
           cuda::make_backward_plan(shape_of(1, -1, 1, 1), DType::kFloat32, settings);
         }).empty());
}

}  // namespace
}  // namespace lstm_fused::test

int main() {
  lstm_fused::test::test_bounds();
  lstm_fused::test::test_workspaces();
  lstm_fused::test::test_options();
  lstm_fused::test::test_texts();
  lstm_fused::test::test_choice();
  lstm_fused::test::test_projection();
  lstm_fused::test::test_refusals();
  lstm_fused::test::test_variant();
  lstm_fused::test::test_errors();
  return lstm_fused::test::exit_status();
}
