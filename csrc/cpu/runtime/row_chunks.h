// SPDX-License-Identifier: BSD-3-Clause
// How products over all rows of data are cut for the threads.
#pragma once

#include <cstdint>

#include "common/integers.h"
#include "cpu/kernels/kernels.h"

namespace lstm_fused::cpu {

// Rows that a thread takes at a time, at most: enough to reuse each panel that is read, few enough
// that their 4H gates stay in the L2 cache up to H = 512.
constexpr int64_t kMaxChunkRows = 96;
static_assert(kMaxChunkRows % kMaxMR == 0, "whole register blocks");

// Rows of a chunk: chunks are of about the same size, and as many for each thread.
inline int64_t chunk_rows(int64_t rows, int threads) {
  const int64_t chunks = round_up(ceil_div(rows, kMaxChunkRows), threads);
  return round_up(ceil_div(rows, chunks), kMaxMR);
}

}  // namespace lstm_fused::cpu
