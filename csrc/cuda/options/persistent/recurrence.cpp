// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/options/persistent/recurrence.h"

#include <type_traits>

#include "common/error.h"
#include "cuda/options/persistent/arguments.h"

namespace lstm_fused::cuda {
namespace {

// FFMA has no groups: see option_group_refusal.
template <typename Product>
constexpr bool kHasGroups = !std::is_same_v<Product, F32Product>;

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
  launch_plan(
      args, plan.persistent, "persistent_group_option_forward_kernel",
      make_persistent_args(args, directions),
      [&](auto tag, const PersistentForwardArgs& kernel_args) {
        using Product = typename decltype(tag)::Product;
        launch_cta_option_forward<Product>(kernel_args, options, plan.persistent, call.stream);
      },
      [&](auto tag, const PersistentForwardArgs& kernel_args, const GroupArgs& group) {
        using Product = typename decltype(tag)::Product;
        if constexpr (kHasGroups<Product>) {
          launch_group_option_forward<Product>(kernel_args, options, group, plan.persistent,
                                               call.stream);
        } else {
          LSTM_CHECK(false, "plans take no group for these products");
        }
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
  launch_plan(
      args, plan.persistent, "persistent_group_option_backward_kernel",
      make_persistent_args(args, recurrences),
      [&](auto tag, const PersistentBackwardArgs& kernel_args) {
        using Product = typename decltype(tag)::Product;
        launch_cta_option_backward<Product>(kernel_args, options, plan.persistent, call.stream);
      },
      [&](auto tag, const PersistentBackwardArgs& kernel_args, const GroupArgs& group) {
        using Product = typename decltype(tag)::Product;
        if constexpr (kHasGroups<Product>) {
          launch_group_option_backward<Product>(kernel_args, options, group, plan.persistent,
                                                call.stream);
        } else {
          LSTM_CHECK(false, "plans take no group for these products");
        }
      });
}

}  // namespace lstm_fused::cuda
