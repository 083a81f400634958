// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/persistent/forward.h"

#include "cuda/persistent/launch.h"

namespace lstm_fused::cuda {
namespace {

template <typename Product>
void launch(const PersistentForwardArgs& args, void* workspace, const PersistentPlan& plan,
            cudaStream_t stream) {
  if (plan.group) {
    launch_group_forward<Product>(args, make_group_args(plan, workspace, stream), plan, stream);
  } else {
    launch_cta_forward<Product>(args, plan, stream);
  }
}

}  // namespace

void launch_persistent_forward(const RecurrenceArgs& args, const ForwardRecurrence* directions,
                               const PersistentPlan& plan) {
  if (args.shape.batch == 0) return;
  const PersistentForwardArgs device_args = make_persistent_args(args, directions);
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
