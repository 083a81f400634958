// SPDX-License-Identifier: BSD-3-Clause
#define LSTM_ISA avx512
#include "cpu/kernels/kernels-inl.h"

namespace lstm_fused::cpu::avx512 {

const KernelTable& kernels(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return kernel_table<float, float>();
    case DType::kFloat64:
      return kernel_table<double, double>();
    case DType::kBFloat16:
      return kernel_table<BFloat16, float>();
    default:
      return kernel_table<Float16, float>();
  }
}

}  // namespace lstm_fused::cpu::avx512
