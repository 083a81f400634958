// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "cpu/runtime/team.h"

namespace lstm_fused {

// torch's intra-op thread pool, with torch.get_num_threads() threads.
cpu::Parallel torch_parallel();

}  // namespace lstm_fused
