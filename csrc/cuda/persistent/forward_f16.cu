// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/persistent/forward_launch.cuh"

namespace lstm_fused::cuda {

template void launch_forward<F16Product>(const RecurrenceArgs&, const PersistentForwardArgs&,
                                         const PersistentPlan&);

}  // namespace lstm_fused::cuda
