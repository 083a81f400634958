// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/persistent/forward.h"

#include "cuda/persistent/launch.h"

namespace lstm_fused::cuda {

void launch_persistent_forward(const RecurrenceArgs& args, const ForwardRecurrence* directions,
                               const PersistentPlan& plan) {
  if (args.shape.batch == 0) return;
  launch_plan(
      args, plan, "persistent_group_forward_kernel", make_persistent_args(args, directions),
      [&](auto tag, const PersistentForwardArgs& kernel_args) {
        launch_cta_forward<typename decltype(tag)::Product>(kernel_args, plan, args.stream);
      },
      [&](auto tag, const PersistentForwardArgs& kernel_args, const GroupArgs& group) {
        using Product = typename decltype(tag)::Product;
        launch_group_forward<Product>(kernel_args, group, plan, args.stream);
      });
}

}  // namespace lstm_fused::cuda
