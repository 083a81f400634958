// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/persistent_forward.h"

#include "common/error.h"
#include "cuda/persistent_launch.h"

namespace lstm_fused::cuda {

void launch_persistent_forward(const RecurrenceArgs& args, const ForwardRecurrence* directions,
                               const PersistentPlan& plan) {
  if (args.shape.batch == 0) return;
  const PersistentForwardArgs device_args = make_persistent_args(args, directions);
  switch (plan.product) {
    case ProductKind::kBFloat16:
      return launch_cta_forward<Bf16Product>(device_args, plan, args.stream);
    case ProductKind::kFloat16:
      return launch_cta_forward<F16Product>(device_args, plan, args.stream);
    case ProductKind::kTf32:
      return launch_cta_forward<Tf32Product>(device_args, plan, args.stream);
    case ProductKind::kFloat32:
      return launch_cta_forward<F32Product>(device_args, plan, args.stream);
  }
}

}  // namespace lstm_fused::cuda
