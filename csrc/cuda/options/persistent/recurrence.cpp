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

template <typename Call>
RecurrenceArgs recurrence_args(const Call& call, const LstmPlan& plan, void* workspace) {
  RecurrenceArgs args;
  args.shape = call.shape;
  args.dtype = call.dtype;
  args.allow_tf32 = plan.allow_tf32;
  args.lengths = call.lengths;
  args.reset_mask = call.reset_mask;
  args.workspace = workspace;
  args.stream = call.stream;
  return args;
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
  const RecurrenceArgs args = recurrence_args(call, plan, workspace);
  PersistentOptions options = persistent_options(call.options);
  ForwardRecurrence directions[kMaxDirections];
  for (int i = 0; i < call.shape.directions; ++i) {
    const LstmForwardDirection& from = call.direction[i];
    options.direction[i].inputs = from.options;
    options.direction[i].b_ih = from.weights.b_ih;
    options.direction[i].b_hh = from.weights.b_hh;
    ForwardRecurrence& to = directions[i];
    to.preactivations = preactivations[i];
    to.w_hh = from.weights.w_hh;
    to.h_0 = from.h_0;
    to.c_0 = from.c_0;
    to.y = from.y;
    to.h_n = from.h_n;
    to.c_n = from.c_n;
    to.cell_states = from.cell_states;
    to.gates = from.gates;
    to.cells = from.cells;
  }
  PersistentForwardArgs kernel_args = make_persistent_args(args, directions);
  dispatch_product(plan.persistent.product, [&](auto tag) {
    using Product = typename decltype(tag)::Product;
    if (!plan.persistent.group) {
      launch_cta_option_forward<Product>(kernel_args, options, plan.persistent, call.stream);
    } else if constexpr (kHasGroups<Product>) {
      const GroupArgs group =
          make_group_args(args, plan.persistent, "persistent_group_option_forward_kernel");
      kernel_args.lengths = copy_lengths(args, plan.persistent);
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
  const RecurrenceArgs args = recurrence_args(call, plan, workspace);
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
  PersistentBackwardArgs kernel_args = make_persistent_args(args, recurrences);
  dispatch_product(plan.persistent.product, [&](auto tag) {
    using Product = typename decltype(tag)::Product;
    if (!plan.persistent.group) {
      launch_cta_option_backward<Product>(kernel_args, options, plan.persistent, call.stream);
    } else if constexpr (kHasGroups<Product>) {
      const GroupArgs group =
          make_group_args(args, plan.persistent, "persistent_group_option_backward_kernel");
      kernel_args.lengths = copy_lengths(args, plan.persistent);
      launch_group_option_backward<Product>(kernel_args, options, group, plan.persistent,
                                            call.stream);
    } else {
      LSTM_CHECK(false, "plans take no group for these products");
    }
  });
}

}  // namespace lstm_fused::cuda
