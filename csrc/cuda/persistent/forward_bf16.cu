// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/persistent/forward_launch.cuh"

namespace lstm_fused::cuda {

template void launch_cta_forward<Bf16Product>(const PersistentForwardArgs&, const PersistentPlan&,
                                              cudaStream_t);
template void launch_group_forward<Bf16Product>(const PersistentForwardArgs&, const GroupArgs&,
                                                const PersistentPlan&, cudaStream_t);

}  // namespace lstm_fused::cuda
