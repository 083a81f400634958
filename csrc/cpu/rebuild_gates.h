// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "common/lstm.h"
#include "cpu/plan.h"
#include "cpu/team.h"

namespace lstm_fused::cpu {

// Computes a forward's activated gates from the states that it gave: one product over all rows of
// data, since every step's h_prev is known. `plan` is make_forward_plan's; with it the gates have
// the forward's bits.
void rebuild_gates(const LstmGatesArgs& args, const LstmPlan& plan, const Parallel& parallel);

}  // namespace lstm_fused::cpu
