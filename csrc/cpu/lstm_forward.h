// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "common/lstm.h"
#include "cpu/plan.h"
#include "cpu/runtime/team.h"

namespace lstm_fused::cpu {

// Runs one layer, both directions, over its sequences. The result does not depend on the number of
// threads, bit for bit.
void lstm_forward(const LstmForwardArgs& args, const LstmPlan& plan, const Parallel& parallel);

}  // namespace lstm_fused::cpu
