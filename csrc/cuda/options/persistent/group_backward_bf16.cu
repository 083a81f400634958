// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/options/persistent/group_launch.cuh"

namespace lstm_fused::cuda {

template void launch_group_option_backward<Bf16Product>(const PersistentBackwardArgs&,
                                                        const PersistentOptions&, const GroupArgs&,
                                                        const PersistentPlan&, cudaStream_t);

}  // namespace lstm_fused::cuda
