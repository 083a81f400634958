// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/persistent/backward.h"

#include "cuda/persistent/launch.h"

namespace lstm_fused::cuda {
namespace {

template <typename Product>
void launch(const PersistentBackwardArgs& args, void* workspace, const PersistentPlan& plan,
            cudaStream_t stream) {
  if (plan.group) {
    launch_group_backward<Product>(args, make_group_args(plan, workspace, stream), plan, stream);
  } else {
    launch_cta_backward<Product>(args, plan, stream);
  }
}

}  // namespace

void launch_persistent_backward(const RecurrenceArgs& args, const BackwardRecurrence* directions,
                                const PersistentPlan& plan) {
  if (args.shape.batch == 0) return;
  const PersistentBackwardArgs device_args = make_persistent_args(args, directions);
  switch (plan.product) {
    case ProductKind::kBFloat16:
      return launch<Bf16Product>(device_args, args.workspace, plan, args.stream);
    case ProductKind::kFloat16:
      return launch<F16Product>(device_args, args.workspace, plan, args.stream);
    case ProductKind::kTf32:
      return launch<Tf32Product>(device_args, args.workspace, plan, args.stream);
    case ProductKind::kFloat32:
      return launch<F32Product>(device_args, args.workspace, plan, args.stream);
  }
}

}  // namespace lstm_fused::cuda
