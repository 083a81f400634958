// SPDX-License-Identifier: BSD-3-Clause
// The kernels on packed weights of one instruction set. An isa_*.cpp file defines LSTM_ISA and
// includes this.

#if !defined(LSTM_ISA)
#error "define LSTM_ISA to the namespace of the instruction set"
#endif

#include <cstdint>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "common/lstm_cell.h"
#include "common/types.h"
#include "cpu/kernels/kernels.h"
#include "cpu/quantized/kernels.h"

namespace lstm_fused::cpu::quantized::LSTM_ISA {
namespace {

#include "cpu/kernels/vec-inl.h"
//
#include "cpu/kernels/multiply_add-inl.h"
//
#include "cpu/kernels/math-inl.h"
//
#include "cpu/kernels/matmul-inl.h"
//
#include "cpu/kernels/forward-inl.h"
//
#include "cpu/quantized/exact_multiply_add-inl.h"
//
#include "cpu/quantized/cell-inl.h"
//
#include "cpu/quantized/products-inl.h"
//
#include "cpu/quantized/prepare-inl.h"
//
#include "cpu/quantized/steps-inl.h"

template <WeightType kType>
const QuantizedTable& quantized_kernels() {
  static const QuantizedTable table = {
      prepare_rows<kType>,
      recurrent_step<kType>,
      input_gemm<kType>,
      output_projection<kType>,
  };
  return table;
}

}  // namespace

const QuantizedTable& kernels(WeightType type) {
  switch (type) {
    case WeightType::kInt8:
      return quantized_kernels<WeightType::kInt8>();
    case WeightType::kBFloat16:
      return quantized_kernels<WeightType::kBFloat16>();
    default:
      return quantized_kernels<WeightType::kFloat16>();
  }
}

}  // namespace lstm_fused::cpu::quantized::LSTM_ISA
