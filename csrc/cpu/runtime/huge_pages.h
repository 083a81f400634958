// SPDX-License-Identifier: BSD-3-Clause
// Fresh memory by pages of 2 MiB.
#pragma once

#include <cstdint>

namespace lstm_fused::cpu {

// Asks the system for huge pages in [data, data + bytes), not touched so far, if it is so much that
// malloc takes it from the system for each call and gives it back: a page fault for every 4 KiB
// takes longer than writing results there. Does nothing where there are no huge pages.
void advise_huge_pages(void* data, int64_t bytes);

}  // namespace lstm_fused::cpu
