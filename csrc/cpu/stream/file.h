// SPDX-License-Identifier: BSD-3-Clause
// The file of a stream, docs/stream_format.md: weights of one of four types, an optional linear
// head.
#pragma once

#include <cstddef>
#include <memory>

#include "cpu/stream/model.h"

namespace lstm_fused::cpu {

// Throws Error, a sentence, where the bytes are not a whole and sound file of a known version.
// Weights of 16 and 8 bits stay so where they are many, and must be finite then; a few are widened
// to float32, which is exact.
std::shared_ptr<const StreamModel> read_stream_file(const void* data, size_t size,
                                                    const Parallel& parallel);

}  // namespace lstm_fused::cpu
