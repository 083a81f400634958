// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/persistent_backward.h"

#include "common/error.h"
#include "cuda/persistent_launch.h"

namespace lstm_fused::cuda {

void launch_persistent_backward(const RecurrenceArgs& args, const BackwardRecurrence* directions,
                               const PersistentPlan& plan) {
  if (args.shape.batch == 0) return;
  const PersistentBackwardArgs device_args = make_persistent_args(args, directions);
  switch (plan.product) {
    case ProductKind::kBFloat16:
      return launch_cta_backward<Bf16Product>(device_args, plan, args.stream);
    case ProductKind::kFloat16:
      return launch_cta_backward<F16Product>(device_args, plan, args.stream);
    case ProductKind::kTf32:
      return launch_cta_backward<Tf32Product>(device_args, plan, args.stream);
    case ProductKind::kFloat32:
      return launch_cta_backward<F32Product>(device_args, plan, args.stream);
  }
}

}  // namespace lstm_fused::cuda
