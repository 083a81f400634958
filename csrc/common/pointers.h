// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

namespace lstm_fused {

// The address `elements` elements of `size` bytes after `base`; null stays null.
inline const void* advance(const void* base, int64_t elements, int64_t size) {
  return base ? static_cast<const char*>(base) + elements * size : nullptr;
}
inline void* advance(void* base, int64_t elements, int64_t size) {
  return base ? static_cast<char*>(base) + elements * size : nullptr;
}

}  // namespace lstm_fused
