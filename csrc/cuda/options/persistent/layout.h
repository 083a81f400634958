// SPDX-License-Identifier: BSD-3-Clause
// The sizes on which the persistent kernels of options and their plans agree, beside those of the
// plain ones. Free of CUDA's headers.
#pragma once

#include "common/cell_options.h"
#include "cuda/persistent/layout.h"

namespace lstm_fused::cuda {

// Chunks of weights that a thread of the backward on one block keeps in shared memory, of as many
// chunks of a row: as in the plain kernel.
LSTM_HOST_DEVICE constexpr int cta_option_backward_shared_chunks(int chunks, int bytes) {
  return chunks == (bytes == 2 ? kCtaChunks16[1] : kCtaChunks32[1]) ? 2 : 0;
}
// Shared memory of such a block: the tile of the gates' gradients; vectors of weights, one chunk of
// them at least, through which the others are loaded; and for each thread two exchanged sums, two
// factors of a mask and the sums of three peepholes; for each unit its peepholes.
LSTM_HOST_DEVICE constexpr int cta_option_backward_bytes(int chunks, int bytes) {
  const int threads = cta_max_threads(chunks, bytes);
  const int shared = cta_option_backward_shared_chunks(chunks, bytes);
  return tile_bytes(chunks * kGates) + (shared > 0 ? shared : 1) * 2 * threads * kLaneBytes +
         threads * (2 + kLaneRows + kPeepholes) * 4 + chunk_units(chunks, bytes) * kLaneBytes;
}

// Shared memory that a block of a group takes beside the plain kernel's: peepholes of its units;
// for each thread's cells, in the forward, h, c and a mask; in the backward the gradients of h and
// c and a mask, and the thread's sums for three peepholes.
LSTM_HOST_DEVICE constexpr int group_option_forward_bytes(int units) {
  return units * kLaneBytes + kGroupThreads * 3 * kGroupCells * 4;
}
LSTM_HOST_DEVICE constexpr int group_option_backward_bytes(int units) {
  return units * kLaneBytes + kGroupThreads * (3 * kGroupCells + kPeepholes) * 4;
}
// Bytes in the exchange area for each byte of a tile: a unit takes a word there.
LSTM_HOST_DEVICE constexpr int option_word_bytes(int bytes) { return 4 / bytes; }

}  // namespace lstm_fused::cuda
