// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/persistent/backward.h"

#include "cuda/persistent/launch.h"

namespace lstm_fused::cuda {

void launch_persistent_backward(const RecurrenceArgs& args, const LstmBackwardDirection* directions,
                                const PersistentPlan& plan) {
  if (args.shape.batch == 0) return;
  dispatch_product(plan.product, [&](auto tag) {
    using Product = typename decltype(tag)::Product;
    launch_backward<Product>(args, make_persistent_args(args, directions), plan);
  });
}

}  // namespace lstm_fused::cuda
