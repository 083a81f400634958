// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "common/lstm.h"
#include "cpu/quantized/plan.h"
#include "cpu/runtime/team.h"

namespace lstm_fused::cpu::quantized {

// One direction of a layer, as LstmForwardDirection is for plain weights; everything is float32.
struct QuantizedDirection {
  PackedLayer layer;
  const float* h_0 = nullptr;    // (N, P); null: zero
  const float* c_0 = nullptr;    // (N, H); null: zero
  float* y = nullptr;            // out, first column of this direction in rows of L·P; or null
  float* h_n = nullptr;          // out (N, P)
  float* c_n = nullptr;          // out (N, H)
  float* cell_states = nullptr;  // out, as y, in rows of L·H; or null
};

// No output may alias an input. Rows of y and cell_states past a row's length are not written.
struct QuantizedForwardArgs {
  LstmShape shape;
  const SequenceLayout* layout = nullptr;
  const float* x = nullptr;             // (T, N, D), or (M, D) when packed
  const uint8_t* reset_mask = nullptr;  // (T, N) or null; only with padded layouts
  QuantizedDirection direction[kMaxDirections];
};

// Runs one layer, both directions, over its sequences. Throws Error unless the weights have the
// sizes of the shape and one type. The result depends neither on the plan nor on the threads, bit
// for bit; with int8 weights not on the instruction set either.
void quantized_forward(const QuantizedForwardArgs& args, const QuantizedPlan& plan,
                       const Parallel& parallel);

}  // namespace lstm_fused::cpu::quantized
