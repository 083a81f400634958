// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/persistent/backward.h"

#include "cuda/persistent/launch.h"

namespace lstm_fused::cuda {

void launch_persistent_backward(const RecurrenceArgs& args, const LstmBackwardDirection* directions,
                                const PersistentPlan& plan) {
  if (args.shape.batch == 0) return;
  launch_plan(
      args, plan, "persistent_group_backward_kernel", make_persistent_args(args, directions),
      [&](auto tag, const PersistentBackwardArgs& kernel_args) {
        launch_cta_backward<typename decltype(tag)::Product>(kernel_args, plan, args.stream);
      },
      [&](auto tag, const PersistentBackwardArgs& kernel_args, const GroupArgs& group) {
        using Product = typename decltype(tag)::Product;
        launch_group_backward<Product>(kernel_args, group, plan, args.stream);
      });
}

}  // namespace lstm_fused::cuda
