// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/options/persistent/group_launch.cuh"

namespace lstm_fused::cuda {

template void launch_group_option_forward<Tf32Product>(const RecurrenceArgs&,
                                                       const PersistentForwardArgs&,
                                                       const PersistentOptions&,
                                                       const PersistentPlan&);

}  // namespace lstm_fused::cuda
