// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/persistent/backward.h"

#include "cuda/persistent/launch.h"

namespace lstm_fused::cuda {

void launch_persistent_backward(const RecurrenceArgs& args, const LstmBackwardDirection* directions,
                                const PersistentPlan& plan) {
  if (args.shape.batch == 0) return;
  PersistentBackwardArgs kernel_args = make_persistent_args(args, directions);
  dispatch_product(plan.product, [&](auto tag) {
    using Product = typename decltype(tag)::Product;
    if (plan.group) {
      const GroupArgs group = make_group_args(args, plan, "persistent_group_backward_kernel");
      kernel_args.lengths = copy_lengths(args, plan);
      launch_group_backward<Product>(kernel_args, group, plan, args.stream);
    } else {
      launch_cta_backward<Product>(kernel_args, plan, args.stream);
    }
  });
}

}  // namespace lstm_fused::cuda
