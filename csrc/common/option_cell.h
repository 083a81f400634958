// SPDX-License-Identifier: BSD-3-Clause
// The cell with options (cell_options.h has the formulas), written once as lstm_cell.h is: for
// scalars and for SIMD vectors, host and device.
#pragma once

#include "common/lstm_cell.h"

namespace lstm_fused {

// What a unit's cell reads of the options. Vectors that an option would give are not read without
// it.
template <typename V>
struct OptionValues {
  bool has_peephole = false, is_coupled = false, has_clip = false;
  bool has_keep_c = false, has_keep_h = false;
  bool has_norm = false;     // of c̃, ahead of tanh: the caller's work
  V w_ci{}, w_cf{}, w_co{};  // peepholes
  V clip{};                  // > 0
  V keep_c{}, keep_h{};      // parts of c_prev and h_prev that are kept, in [0, 1]
};

// c̃, from the activated gates.
template <typename Math, typename V>
LSTM_HOST_DEVICE V candidate_cell(const Gates<V>& gates, V c_prev, const OptionValues<V>& values) {
  V c = Math::multiply_add(gates.f, c_prev, gates.i * gates.g);
  if (values.has_clip) {
    // NOTE: both comparisons are false for NaN, which passes through.
    c = c > values.clip ? values.clip : c;
    c = c < -values.clip ? -values.clip : c;
  }
  return c;
}

template <typename V>
struct OptionCellOutput {
  Gates<V> gates;
  V c;            // the next state
  V candidate;    // c̃
  V cell_output;  // o·tanh(c̃); not with a norm
};

template <typename Math, typename V>
LSTM_HOST_DEVICE OptionCellOutput<V> option_cell_forward(V a_i, V a_f, V a_g, V a_o, V c_prev,
                                                         const OptionValues<V>& values) {
  if (values.has_peephole) {
    a_i = Math::multiply_add(values.w_ci, c_prev, a_i);
    a_f = Math::multiply_add(values.w_cf, c_prev, a_f);
  }
  OptionCellOutput<V> out;
  out.gates.f = Math::sigmoid(a_f);
  out.gates.i = values.is_coupled ? 1 - out.gates.f : Math::sigmoid(a_i);
  out.gates.g = Math::tanh(a_g);
  const V candidate = candidate_cell<Math>(out.gates, c_prev, values);
  if (values.has_peephole) a_o = Math::multiply_add(values.w_co, candidate, a_o);
  out.gates.o = Math::sigmoid(a_o);
  out.candidate = out.c = candidate;
  if (!values.has_norm) out.cell_output = out.gates.o * Math::tanh(candidate);
  if (values.has_keep_c) {
    // NOTE: exact where keep_c is 0 or 1: a kept state keeps its bits.
    out.c = Math::multiply_add(values.keep_c, c_prev, (1 - values.keep_c) * candidate);
  }
  return out;
}

template <typename V>
struct OptionCellGradient {
  Gates<V> gates;  // with respect to the pre-activations
  V c_prev;
  V cell_output;  // the forward's
  V h_kept{};     // the part of dh that goes to h_prev as it is
  V w_ci{}, w_cf{}, w_co{};
};

// c̃ in the backward. c: the forward's next state.
// NOTE: it is computed where it is not c alone, since the gates may have been rounded to a 16-bit
// type.
template <typename Math, typename V>
LSTM_HOST_DEVICE V rebuild_candidate(const Gates<V>& gates, V c, V c_prev,
                                     const OptionValues<V>& values) {
  if (!values.has_keep_c) return c;
  return values.keep_c == 0 ? c : candidate_cell<Math>(gates, c_prev, values);
}

// What comes back from h = o·tanh(…) to o's pre-activation and to c̃.
template <typename V>
struct OutputGradient {
  V o, candidate;
};

// dh: whole gradient of h. dc: gradient of the next state c. normed: with a norm, what it gives
// back.
template <typename Math, typename V>
LSTM_HOST_DEVICE OptionCellGradient<V> option_cell_backward(const Gates<V>& gates, V c, V c_prev,
                                                            V dh, V dc,
                                                            const OptionValues<V>& values,
                                                            const OutputGradient<V>& normed) {
  OptionCellGradient<V> grad;
  const V candidate = rebuild_candidate<Math>(gates, c, c_prev, values);
  V dc_candidate = values.has_keep_c ? dc * (1 - values.keep_c) : dc;
  if (values.has_keep_h) {
    grad.h_kept = dh * values.keep_h;
    dh = dh * (1 - values.keep_h);
  }
  if (values.has_norm) {
    grad.gates.o = normed.o;
    dc_candidate = dc_candidate + normed.candidate;
  } else {
    const V tanh_c = Math::tanh(candidate);
    grad.cell_output = gates.o * tanh_c;
    grad.gates.o = dh * tanh_c * gates.o * (1 - gates.o);
    dc_candidate = Math::multiply_add(dh * gates.o, (1 - tanh_c) * (1 + tanh_c), dc_candidate);
  }
  if (values.has_peephole) {
    dc_candidate = Math::multiply_add(values.w_co, grad.gates.o, dc_candidate);
    grad.w_co = grad.gates.o * candidate;
  }
  if (values.has_clip) {
    // Beyond the limit, and not at it, the gradient is zero, as that of torch.clamp.
    const V unclipped = Math::multiply_add(gates.f, c_prev, gates.i * gates.g);
    const V size = unclipped < 0 ? -unclipped : unclipped;
    const V reached = candidate < 0 ? -candidate : candidate;
    const V inside = reached < values.clip ? dc_candidate : V{};
    dc_candidate = size > values.clip ? inside : dc_candidate;
  }
  const V d_i = dc_candidate * gates.g;
  grad.gates.g = dc_candidate * gates.i * ((1 - gates.g) * (1 + gates.g));
  if (values.is_coupled) {
    grad.gates.i = V{};
    grad.gates.f = Math::multiply_add(dc_candidate, c_prev, -d_i) * gates.f * (1 - gates.f);
  } else {
    grad.gates.i = d_i * gates.i * (1 - gates.i);
    // NOTE: c_prev·f first, as in lstm_cell_backward.
    grad.gates.f = dc_candidate * (c_prev * gates.f) * (1 - gates.f);
  }
  grad.c_prev = dc_candidate * gates.f;
  if (values.has_keep_c) grad.c_prev = Math::multiply_add(dc, values.keep_c, grad.c_prev);
  if (values.has_peephole) {
    grad.c_prev = Math::multiply_add(values.w_ci, grad.gates.i, grad.c_prev);
    grad.c_prev = Math::multiply_add(values.w_cf, grad.gates.f, grad.c_prev);
    grad.w_ci = grad.gates.i * c_prev;
    grad.w_cf = grad.gates.f * c_prev;
  }
  return grad;
}

}  // namespace lstm_fused
