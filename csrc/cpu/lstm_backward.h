// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "common/lstm.h"
#include "cpu/plan.h"
#include "cpu/team.h"

namespace lstm_fused::cpu {

// Runs the recurrence of one layer's backward, both directions. The result does not depend on the
// number of threads, bit for bit.
void lstm_backward(const LstmBackwardArgs& args, const LstmPlan& plan, const Parallel& parallel);

}  // namespace lstm_fused::cpu
