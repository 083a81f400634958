// SPDX-License-Identifier: BSD-3-Clause
// The problems on which kernels are checked before their first use: for every kernel that a plan
// may take, on every device, one that takes it.
#include <set>

#include "check.h"
#include "common/types.h"
#include "cuda/first_use/plan.h"

namespace lstm_fused::test {
namespace {

using cuda::CheckPlan;
using cuda::DeviceFacts;
using cuda::LstmPlan;
using cuda::PlanSettings;
using cuda::Variant;
using cuda::VariantChoice;

// An A100, an RTX 4090, an H100, an RTX 5090; a seventh of an A100, and a device that has just the
// multiprocessors that the smallest groups need.
const DeviceFacts kDevices[] = {
    {8, 0, 108, 164 << 10, 163 << 10, 65536, 2048, 40 << 20},
    {8, 9, 128, 100 << 10, 99 << 10, 65536, 1536, 72 << 20},
    {9, 0, 132, 228 << 10, 227 << 10, 65536, 2048, 50 << 20},
    {12, 0, 170, 100 << 10, 99 << 10, 65536, 1536, 96 << 20},
    {8, 0, 14, 164 << 10, 163 << 10, 65536, 2048, 5 << 20},
    {8, 0, 5, 164 << 10, 163 << 10, 65536, 2048, 5 << 20},
};

struct Kind {
  DType dtype;
  bool allow_tf32;
};
constexpr Kind kKinds[] = {{DType::kFloat32, false},
                           {DType::kFloat32, true},
                           {DType::kBFloat16, false},
                           {DType::kFloat16, false}};

LstmPlan make_plan(bool options, bool backward, const LstmShape& shape, DType dtype,
                   const PlanSettings& settings) {
  if (options) {
    return backward ? cuda::make_options_backward_plan(shape, dtype, settings, false)
                    : cuda::make_options_forward_plan(shape, dtype, settings, false);
  }
  return backward ? cuda::make_backward_plan(shape, dtype, settings)
                  : cuda::make_forward_plan(shape, dtype, settings);
}

// The numbers of the kernels that the plans of all shapes take, each checked by a problem.
std::set<int> checked_kernels(const DeviceFacts& facts, bool options) {
  std::set<int> kernels;
  for (const Kind& kind : kKinds) {
    for (const bool backward : {false, true}) {
      for (const int64_t hidden : {3, 40, 64, 70, 96, 97, 128, 129, 200, 300, 512, 768, 1024}) {
        for (const int64_t batch : {1, 8, 16, 40, 64, 130, 260, 500}) {
          PlanSettings settings;
          settings.facts = facts;
          settings.allow_tf32 = kind.allow_tf32;
          settings.choice = VariantChoice::kPersistent;
          const LstmShape shape = {9, batch, 4, hidden, hidden, 1, false};
          const LstmPlan plan = make_plan(options, backward, shape, kind.dtype, settings);
          if (plan.variant == Variant::kStepwise) continue;
          const Scope scope(dtype_name(kind.dtype), " N=", batch, " H=", hidden,
                            " backward=", backward, " SMs=", facts.sm_count);
          const int kernel = cuda::kernel_number(plan, backward);
          CHECK_LE(0, kernel);
          CHECK_LT(kernel, cuda::kPersistentKernels);
          kernels.insert(kernel);
          const auto check = cuda::make_check_plan(plan, kind.dtype, backward, facts);
          CHECK(check.has_value());
          if (!check) continue;
          CHECK_EQ(cuda::kernel_number(check->persistent, backward), kernel);
          CHECK_EQ(check->forward.has_options && check->backward.has_options, options);
          CHECK(check->persistent.variant == plan.variant);
          CHECK(check->forward.variant == Variant::kStepwise);
          CHECK(check->backward.variant == Variant::kStepwise);
          if (plan.persistent.group) {
            CHECK_LE(2, check->persistent.persistent.group_blocks);
            CHECK_LE(check->persistent.persistent.group_blocks *
                         check->persistent.persistent.groups * check->shape.directions,
                     facts.sm_count);
          }
        }
      }
    }
  }
  return kernels;
}

// Each direction, product and variant; of one block two sizes, each again where 16-bit weights fill
// it; of groups' backward two, each again for a single tile where there are no options.
void test_every_kernel_has_a_problem() {
  std::set<int> taken;  // on any device
  size_t existing = 0;
  for (const bool options : {false, true}) {
    // With options FFMA has no groups.
    const size_t blocks = 4 * (2 + 2) + (options ? 0 : 2 * (2 + 2));
    const size_t groups = options ? 3 * (1 + 2) : 4 * (1 + 2 + 2);
    existing += blocks + groups;
    for (const DeviceFacts& facts : kDevices) {
      const std::set<int> kernels = checked_kernels(facts, options);
      CHECK_LE(blocks, kernels.size());
      CHECK_LE(kernels.size(), blocks + groups);
      taken.insert(kernels.begin(), kernels.end());
    }
  }
  CHECK_EQ(taken.size(), existing);
}

}  // namespace
}  // namespace lstm_fused::test

int main() {
  lstm_fused::test::test_every_kernel_has_a_problem();
  return lstm_fused::test::exit_status();
}
