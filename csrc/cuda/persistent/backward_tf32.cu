// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/persistent/backward_launch.cuh"

namespace lstm_fused::cuda {

template void launch_backward<Tf32Product>(const RecurrenceArgs&, const PersistentBackwardArgs&,
                                           const PersistentPlan&);

}  // namespace lstm_fused::cuda
