// SPDX-License-Identifier: BSD-3-Clause
#define LSTM_ISA avx512_bf16
#include "cpu/kernels/kernels-inl.h"

namespace lstm_fused::cpu::avx512_bf16 {

const KernelTable& kernels(DType dtype) {
  return dtype == DType::kBFloat16 ? kernel_table<BFloat16, BFloat16>() : avx512::kernels(dtype);
}

}  // namespace lstm_fused::cpu::avx512_bf16
