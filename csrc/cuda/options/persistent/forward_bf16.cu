// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/options/persistent/forward_launch.cuh"

namespace lstm_fused::cuda {

template void launch_cta_option_forward<Bf16Product>(const RecurrenceArgs&,
                                                     const PersistentForwardArgs&,
                                                     const PersistentOptions&,
                                                     const PersistentPlan&);

}  // namespace lstm_fused::cuda
