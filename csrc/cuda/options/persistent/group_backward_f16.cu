// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/options/persistent/group_launch.cuh"

namespace lstm_fused::cuda {

template void launch_group_option_backward<F16Product>(const RecurrenceArgs&,
                                                       const PersistentBackwardArgs&,
                                                       const PersistentOptions&,
                                                       const PersistentPlan&);

}  // namespace lstm_fused::cuda
