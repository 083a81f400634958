// SPDX-License-Identifier: BSD-3-Clause
// The LSTM cell, written once, for scalars and for SIMD vectors, host and device.
//
// With pre-activations a_i, a_f, a_g, a_o (gate order i, f, g, o, as in PyTorch):
//   i = σ(a_i)   f = σ(a_f)   g = tanh(a_g)   o = σ(a_o)
//   c = f·c_prev + i·g        h = o·tanh(c)
// Hochreiter & Schmidhuber 1997; forget gate: Gers, Schmidhuber & Cummins 2000.
//
// `Math` supplies sigmoid(V), tanh(V) and multiply_add(V a, V b, V c) = a·b + c.
#pragma once

#if defined(__CUDACC__)
#define LSTM_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define LSTM_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace lstm_fused {

// Activated gates, or gradients with respect to their pre-activations.
template <typename V>
struct Gates {
  V i, f, g, o;
};

template <typename V>
struct CellOutput {
  V h, c;
};

template <typename Math, typename V>
LSTM_HOST_DEVICE Gates<V> activate_gates(V a_i, V a_f, V a_g, V a_o) {
  return {Math::sigmoid(a_i), Math::sigmoid(a_f), Math::tanh(a_g), Math::sigmoid(a_o)};
}

template <typename Math, typename V>
LSTM_HOST_DEVICE CellOutput<V> lstm_cell_forward(const Gates<V>& gates, V c_prev) {
  const V c = Math::multiply_add(gates.f, c_prev, gates.i * gates.g);
  return {gates.o * Math::tanh(c), c};
}

template <typename V>
struct CellGradient {
  Gates<V> gates;  // with respect to the pre-activations
  V c_prev;
};

// dh: whole gradient of h. dc: gradient of c that arrives from the next step and from outside.
template <typename Math, typename V>
LSTM_HOST_DEVICE CellGradient<V> lstm_cell_backward(const Gates<V>& gates, V c, V c_prev, V dh,
                                                    V dc) {
  const V tanh_c = Math::tanh(c);
  // NOTE: (1 - t)·(1 + t) in place of 1 - t·t, which loses what is left near ±1.
  const V dc_total = Math::multiply_add(dh * gates.o, (1 - tanh_c) * (1 + tanh_c), dc);
  CellGradient<V> grad;
  grad.gates.i = dc_total * gates.g * gates.i * (1 - gates.i);
  // NOTE: c_prev·f first: dc·c_prev may overflow where f is 0, and infinity times 0 is NaN.
  grad.gates.f = dc_total * (c_prev * gates.f) * (1 - gates.f);
  grad.gates.g = dc_total * gates.i * ((1 - gates.g) * (1 + gates.g));
  grad.gates.o = dh * tanh_c * gates.o * (1 - gates.o);
  grad.c_prev = dc_total * gates.f;
  return grad;
}

// What dh and dc are multiplied by in lstm_cell_backward. It takes no part in the chain from one
// step to the next, so that it can be computed ahead.
template <typename V>
struct CellSlopes {
  V c;             // of h by c
  Gates<V> gates;  // of c by the pre-activations of i, f and g, and of h by that of o
  V f;
};

template <typename Math, typename V>
LSTM_HOST_DEVICE CellSlopes<V> lstm_cell_slopes(const Gates<V>& gates, V c, V c_prev) {
  const V tanh_c = Math::tanh(c);
  CellSlopes<V> slopes;
  slopes.c = gates.o * ((1 - tanh_c) * (1 + tanh_c));
  slopes.gates.i = gates.g * (gates.i * (1 - gates.i));
  slopes.gates.f = c_prev * gates.f * (1 - gates.f);
  slopes.gates.g = gates.i * ((1 - gates.g) * (1 + gates.g));
  slopes.gates.o = tanh_c * (gates.o * (1 - gates.o));
  slopes.f = gates.f;
  return slopes;
}

// lstm_cell_backward, from lstm_cell_slopes.
template <typename Math, typename V>
LSTM_HOST_DEVICE CellGradient<V> lstm_cell_backward(const CellSlopes<V>& slopes, V dh, V dc) {
  const V dc_total = Math::multiply_add(dh, slopes.c, dc);
  CellGradient<V> grad;
  grad.gates.i = dc_total * slopes.gates.i;
  grad.gates.f = dc_total * slopes.gates.f;
  grad.gates.g = dc_total * slopes.gates.g;
  grad.gates.o = dh * slopes.gates.o;
  grad.c_prev = dc_total * slopes.f;
  return grad;
}

}  // namespace lstm_fused
