// SPDX-License-Identifier: BSD-3-Clause
#include <torch/csrc/stable/library.h>

#include "torch/schemas.h"

STABLE_TORCH_LIBRARY(lstm_fused, m) {
  m.def(lstm_fused::kLstmForwardSchema);
  m.def(lstm_fused::kLstmInferenceSchema);
  m.def(lstm_fused::kLstmBackwardSchema);
  m.def(lstm_fused::kLstmSampleGradientsSchema);
  m.def(lstm_fused::kLstmGateGradientsSchema);
  m.def(lstm_fused::kLstmCellSchema);
  m.def(lstm_fused::kLstmCellBackwardSchema);
}
