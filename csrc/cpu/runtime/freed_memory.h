// SPDX-License-Identifier: BSD-3-Clause
// Memory that malloc keeps for the next call.
#pragma once

#include <cstdint>

namespace lstm_fused::cpu {

// Has glibc's malloc keep freed memory for a program that frees `bytes` together, call after call.
// Otherwise it gives them back to the system each time, and the next call pays a page fault for
// every 4 KiB, which takes longer than to compute them. Does nothing for bytes it has been called
// for before, and where the user has set malloc's thresholds.
void keep_freed_memory(int64_t bytes);

}  // namespace lstm_fused::cpu
