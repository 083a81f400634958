// SPDX-License-Identifier: BSD-3-Clause
// Gates and element types. 16-bit types are storage only: arithmetic on them is done in float.
#pragma once

#include <cstdint>

namespace lstm_fused {

// Order of the gates in weights and pre-activations: PyTorch's.
enum Gate { kInputGate = 0, kForgetGate = 1, kCellGate = 2, kOutputGate = 3 };
constexpr int kGates = 4;

enum class DType { kFloat32, kFloat64, kBFloat16, kFloat16 };

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};
static_assert(sizeof(BFloat16) == 2 && sizeof(Float16) == 2, "16-bit storage types");

inline int64_t dtype_size(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return 8;
    case DType::kFloat32:
      return 4;
    default:
      return 2;
  }
}

// Accumulators and cell states are float, or double where the storage type is double.
inline int64_t accumulator_size(DType dtype) { return dtype == DType::kFloat64 ? 8 : 4; }

inline const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kFloat64:
      return "float64";
    case DType::kBFloat16:
      return "bfloat16";
    default:
      return "float16";
  }
}

}  // namespace lstm_fused
