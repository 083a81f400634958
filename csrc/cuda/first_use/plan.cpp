// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/first_use/plan.h"

#include <algorithm>

#include "common/error.h"
#include "common/integers.h"

namespace lstm_fused::cuda {
namespace {

// Steps: groups use each of their two buffers three times, so that all tags come up again.
// Features: few, for the input GEMM is not what is checked.
constexpr int64_t kSteps = 7, kFeatures = 5;

// Units that no tile divides, unless the kernel is for one that does: the most that fit a block of
// so many chunks, but for three, or the fewest, and two more, that no block has room for.
int64_t hidden_size_for(const PersistentPlan& plan) {
  const int bytes = operand_bytes(plan.product);
  if (!plan.group) return chunk_units(plan.chunks, bytes) - (plan.full ? 0 : 3);
  const int most = bytes == 2 ? kCtaChunks16[1] : kCtaChunks32[1];
  return chunk_units(most, bytes) + 3;
}

LstmPlan make_plan(bool has_options, bool backward, const LstmShape& shape, DType dtype,
                   const PlanSettings& settings) {
  if (has_options) {
    const auto plan = backward ? make_options_backward_plan : make_options_forward_plan;
    return plan(shape, dtype, settings, /*has_norms=*/false);
  }
  return (backward ? make_backward_plan : make_forward_plan)(shape, dtype, settings);
}

}  // namespace

int kernel_number(const LstmPlan& plan, bool backward) {
  const PersistentPlan& p = plan.persistent;
  LSTM_CHECK(plan.variant != Variant::kStepwise, "kernel_number takes persistent plans");
  const bool is_16_bit = operand_bytes(p.product) == 2;
  const bool is_second = p.group ? backward && p.units == kGroupUnits[1]
                                 : p.chunks == (is_16_bit ? kCtaChunks16[1] : kCtaChunks32[1]);
  // Kernels whose sizes are constants: of one block that H fills, and of groups of one tile.
  const bool has_own_kernel =
      p.group ? backward && !plan.has_options && p.group_tiles == 1 : p.full;
  const int product = has_own_kernel * 4 + static_cast<int>(p.product);
  return (((plan.has_options * 2 + backward) * 2 + p.group) * 8 + product) * 2 + is_second;
}

std::optional<CheckPlan> make_check_plan(const LstmPlan& plan, DType dtype, bool backward,
                                         const DeviceFacts& facts) {
  PlanSettings settings;
  settings.allow_tf32 = plan.allow_tf32;
  settings.training = true;
  settings.facts = facts;
  CheckPlan check;
  const int64_t hidden = hidden_size_for(plan.persistent);
  // Two directions of a tile and one row more, where that leads to this kernel; else less. The
  // whole device, or, for blocks of many units and groups of two tiles, a part of it that leaves no
  // other choice.
  for (const int directions : {2, 1}) {
    check.shape = {kSteps, 0, kFeatures, hidden, hidden, directions, false};
    const auto group = [&](int units) {
      return directions * static_cast<int>(ceil_div(hidden, units));
    };
    for (const int64_t rows : {kTileRows + 1, kTileRows}) {
      check.shape.batch = rows;
      for (const int sm_count : {facts.sm_count, group(kGroupUnits[0]), group(kGroupUnits[1])}) {
        settings.facts.sm_count = std::min(facts.sm_count, sm_count);
        settings.choice = VariantChoice::kPersistent;
        check.persistent = make_plan(plan.has_options, backward, check.shape, dtype, settings);
        if (check.persistent.variant != plan.variant ||
            kernel_number(check.persistent, backward) != kernel_number(plan, backward)) {
          continue;
        }
        settings.choice = VariantChoice::kStepwise;
        check.forward = make_plan(plan.has_options, false, check.shape, dtype, settings);
        check.backward = make_plan(plan.has_options, true, check.shape, dtype, settings);
        return check;
      }
    }
  }
  return std::nullopt;
}

}  // namespace lstm_fused::cuda
