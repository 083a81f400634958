// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/persistent/forward.h"

#include "cuda/persistent/launch.h"

namespace lstm_fused::cuda {

void launch_persistent_forward(const RecurrenceArgs& args, const ForwardRecurrence* directions,
                               const PersistentPlan& plan) {
  if (args.shape.batch == 0) return;
  PersistentForwardArgs kernel_args = make_persistent_args(args, directions);
  dispatch_product(plan.product, [&](auto tag) {
    using Product = typename decltype(tag)::Product;
    if (plan.group) {
      const GroupArgs group = make_group_args(args, plan, "persistent_group_forward_kernel");
      kernel_args.lengths = copy_lengths(args, plan);
      launch_group_forward<Product>(kernel_args, group, plan, args.stream);
    } else {
      launch_cta_forward<Product>(kernel_args, plan, args.stream);
    }
  });
}

}  // namespace lstm_fused::cuda
