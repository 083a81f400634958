// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/options/persistent/recurrence.h"

#include <type_traits>

#include "common/error.h"
#include "cuda/options/persistent/arguments.h"

namespace lstm_fused::cuda {
namespace {

// Calls run_block or run_group with the ProductTag of a plan.
template <typename RunBlock, typename RunGroup>
void dispatch_option_plan(const PersistentPlan& plan, const RunBlock& run_block,
                          const RunGroup& run_group) {
  dispatch_product(plan.product, [&](auto tag) {
    if (!plan.group) return run_block(tag);
    // FFMA has no groups: see option_group_refusal.
    if constexpr (std::is_same_v<typename decltype(tag)::Product, F32Product>) {
      LSTM_CHECK(false, "plans take no group for these products");
    } else {
      run_group(tag);
    }
  });
}

PersistentOptions persistent_options(const CellOptions& from) {
  PersistentOptions options;
  options.coupled_gates = from.coupled_gates;
  options.cell_clip = static_cast<float>(from.cell_clip);
  options.zoneout_c = static_cast<float>(from.zoneout_c);
  options.zoneout_h = static_cast<float>(from.zoneout_h);
  return options;
}

}  // namespace

void launch_persistent_option_forward(const OptionsForwardCall& call, const LstmPlan& plan,
                                      void* const* preactivations, void* workspace) {
  const RecurrenceArgs args = recurrence_args(call, plan.allow_tf32, workspace);
  PersistentOptions options = persistent_options(call.options);
  ForwardRecurrence directions[kMaxDirections];
  for (int i = 0; i < call.shape.directions; ++i) {
    const LstmForwardDirection& from = call.direction[i];
    options.direction[i].inputs = from.options;
    options.direction[i].b_ih = from.weights.b_ih;
    options.direction[i].b_hh = from.weights.b_hh;
    directions[i] = forward_recurrence(from, preactivations[i]);
  }
  const auto kernel_args = make_persistent_args(args, directions);
  dispatch_option_plan(
      plan.persistent,
      [&](auto tag) {
        using Product = typename decltype(tag)::Product;
        launch_cta_option_forward<Product>(args, kernel_args, options, plan.persistent);
      },
      [&](auto tag) {
        using Product = typename decltype(tag)::Product;
        launch_group_option_forward<Product>(args, kernel_args, options, plan.persistent);
      });
}

void launch_persistent_option_backward(const OptionsBackwardCall& call, const LstmPlan& plan,
                                       const OptionRecurrence* directions,
                                       const PersistentOptionSums* sums, void* workspace) {
  const RecurrenceArgs args = recurrence_args(call, plan.allow_tf32, workspace);
  PersistentOptions options = persistent_options(call.options);
  LstmBackwardDirection recurrences[kMaxDirections];
  for (int i = 0; i < call.shape.directions; ++i) {
    recurrences[i] = call.direction[i].recurrence;
    recurrences[i].grad_gates = directions[i].grad_gates;
    options.direction[i].inputs = recurrences[i].options;
    options.direction[i].grad_peephole = sums[i].peephole;
    options.direction[i].grad_reset_h = sums[i].reset_h;
    options.direction[i].grad_reset_c = sums[i].reset_c;
  }
  const auto kernel_args = make_persistent_args(args, recurrences);
  dispatch_option_plan(
      plan.persistent,
      [&](auto tag) {
        using Product = typename decltype(tag)::Product;
        launch_cta_option_backward<Product>(args, kernel_args, options, plan.persistent);
      },
      [&](auto tag) {
        using Product = typename decltype(tag)::Product;
        launch_group_option_backward<Product>(args, kernel_args, options, plan.persistent);
      });
}

}  // namespace lstm_fused::cuda
