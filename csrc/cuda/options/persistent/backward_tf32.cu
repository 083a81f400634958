// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/options/persistent/backward_launch.cuh"

namespace lstm_fused::cuda {

template void launch_cta_option_backward<Tf32Product>(const RecurrenceArgs&,
                                                      const PersistentBackwardArgs&,
                                                      const PersistentOptions&,
                                                      const PersistentPlan&);

}  // namespace lstm_fused::cuda
