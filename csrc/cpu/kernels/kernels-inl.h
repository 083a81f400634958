// SPDX-License-Identifier: BSD-3-Clause
// All kernels of one instruction set. An isa_*.cpp file defines LSTM_ISA and includes this.

#if !defined(LSTM_ISA)
#error "define LSTM_ISA to the namespace of the instruction set"
#endif

#include <cstdint>
#include <type_traits>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "common/lstm_cell.h"
#include "common/option_cell.h"
#include "common/types.h"
#include "cpu/kernels/kernels.h"
#include "cpu/kernels/option_kernels.h"

namespace lstm_fused::cpu::LSTM_ISA {
namespace {

#include "cpu/kernels/vec-inl.h"
//
#include "cpu/kernels/multiply_add-inl.h"
//
#include "cpu/kernels/math-inl.h"
//
#include "cpu/kernels/matmul-inl.h"
//
#include "cpu/kernels/pack-inl.h"
//
#include "cpu/kernels/unpacked-inl.h"
//
#include "cpu/kernels/backward-inl.h"
#include "cpu/kernels/forward-inl.h"
//
#include "cpu/kernels/dot-inl.h"
#include "cpu/kernels/linear-inl.h"
//
#include "cpu/kernels/options-inl.h"
//
#include "cpu/kernels/norms-inl.h"

template <typename From, typename To>
void convert(const void* source, int64_t n, void* out) {
  using A = AccumulatorOf<From>;
  const From* from = static_cast<const From*>(source);
  To* to = static_cast<To*>(out);
  int64_t i = 0;
  for (; i + kWidth<A> <= n; i += kWidth<A>) {
    store_lanes<true>(to + i, load_lanes<true, Vec<A>>(from + i, kWidth<A>), kWidth<A>);
  }
  if (const int left = static_cast<int>(n - i)) {
    store_lanes<false>(to + i, load_lanes<false, Vec<A>>(from + i, left), left);
  }
}

template <typename S, typename A>
void pack_bias(const void* b_ih, const void* b_hh, int64_t hidden_size, void* bias) {
  A* out = static_cast<A*>(bias);
  for (int64_t unit = 0; unit < hidden_size; unit += kWidth<A>) {
    const int64_t left = hidden_size - unit;
    const int count = static_cast<int>(left < kWidth<A> ? left : kWidth<A>);
    for (int64_t g = 0; g < kGates; ++g, out += kWidth<A>) {
      Vec<A> sum{};
      for (const void* part : {b_ih, b_hh}) {
        if (!part) continue;
        const S* from = static_cast<const S*>(part) + g * hidden_size + unit;
        sum += count == kWidth<A> ? load_lanes<true, Vec<A>>(from, count)
                                  : load_lanes<false, Vec<A>>(from, count);
      }
      store_unaligned(out, sum);
    }
  }
}

template <typename S, typename E>
const KernelTable& kernel_table() {
  using A = AccumulatorOf<E>;
  static const KernelTable table = {
      kWidth<A>,
      kMR,
      kDotRows,
      sizeof(E),
      OperandTraits<E>::kMultiple,
      pack_transposed<S, E>,
      pack_untransposed<S, E>,
      pack_rows<S, E>,
      pack_columns<S, E>,
      sum_rows<S, A>,
      pack_bias<S, A>,
      convert<S, A>,
      convert<S, E>,
      convert<A, S>,
      convert<E, S>,
      cell_output<S, A>,
      forward_step<S, E>,
      dot_step<S>,
      linear_step<S, E>,
      backward_step<S, E>,
      outer_products<S, E>,
      &option_kernels<S, E>(),
  };
  return table;
}

}  // namespace
}  // namespace lstm_fused::cpu::LSTM_ISA
