// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/persistent/backward_launch.cuh"

namespace lstm_fused::cuda {

template void launch_cta_backward<F16Product>(const PersistentBackwardArgs&, const PersistentPlan&,
                                              cudaStream_t);
template void launch_group_backward<F16Product>(const PersistentBackwardArgs&, const GroupArgs&,
                                                const PersistentPlan&, cudaStream_t);

}  // namespace lstm_fused::cuda
