// SPDX-License-Identifier: BSD-3-Clause
// One LSTM layer in double precision, row by row from the formulas, for all that the core offers.
// It knows nothing of the kernels, their layouts or their order of rows: all sequences here are
// dense (T, N, columns), of which only t < lengths[n] is read and written.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#include "common/lstm.h"

namespace lstm_fused::test {

using Values = std::vector<double>;

struct DirectionValues {
  Values w_ih, w_hh, b_ih, b_hh, w_hr;  // of nn.LSTM's shapes; empty: absent
  Values h_0, c_0;                      // (N, P), (N, H)
};

struct LayerValues {
  LstmShape shape;
  std::vector<int64_t> lengths;     // (N)
  std::vector<uint8_t> reset_mask;  // (T, N) or empty
  Values x;                         // (T, N, D)
  DirectionValues direction[kMaxDirections];
  // What becomes of each element of o·tanh(c) and of h: 16-bit types round them.
  std::function<double(double)> round_state = [](double value) { return value; };
};

struct ForwardTruth {
  Values y, cells, gates;  // (T, N, P), (T, N, H), (T, N, 4H) activated
  Values h_n, c_n;
};

struct IncomingGradients {
  Values y, cell_states;  // (T, N, P), (T, N, H)
  Values h_n, c_n;
};

struct BackwardTruth {
  Values gates, output;  // (T, N, 4H) of the pre-activations, (T, N, P) whole gradient of h
  Values h_0, c_0;
};

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// The time of a row's step s, in the order of processing.
inline int64_t time_of(int64_t s, int64_t length, int direction) {
  return direction == 0 ? s : length - 1 - s;
}

inline bool is_marked(const LayerValues& layer, int64_t t, int64_t n) {
  return !layer.reset_mask.empty() && layer.reset_mask[t * layer.shape.batch + n] != 0;
}

inline ForwardTruth reference_forward(const LayerValues& layer, int d) {
  const int64_t T = layer.shape.steps, N = layer.shape.batch, D = layer.shape.input_size;
  const int64_t H = layer.shape.hidden_size, P = layer.shape.output_size;
  const DirectionValues& in = layer.direction[d];
  ForwardTruth out;
  out.y.assign(T * N * P, 0);
  out.cells.assign(T * N * H, 0);
  out.gates.assign(T * N * 4 * H, 0);
  for (int64_t n = 0; n < N; ++n) {
    Values h(in.h_0.begin() + n * P, in.h_0.begin() + (n + 1) * P);
    Values c(in.c_0.begin() + n * H, in.c_0.begin() + (n + 1) * H);
    for (int64_t s = 0; s < layer.lengths[n]; ++s) {
      const int64_t t = time_of(s, layer.lengths[n], d), row = t * N + n;
      if (is_marked(layer, t, n)) {
        h.assign(P, 0);
        c.assign(H, 0);
      }
      // gates = W_ih x + b_ih + W_hh h + b_hh
      Values gates(4 * H, 0);
      for (int64_t j = 0; j < 4 * H; ++j) {
        for (int64_t k = 0; k < D; ++k) gates[j] += in.w_ih[j * D + k] * layer.x[row * D + k];
        for (int64_t k = 0; k < P; ++k) gates[j] += in.w_hh[j * P + k] * h[k];
        if (!in.b_ih.empty()) gates[j] += in.b_ih[j];
        if (!in.b_hh.empty()) gates[j] += in.b_hh[j];
        const bool cell_gate = j / H == 2;
        gates[j] = cell_gate ? std::tanh(gates[j]) : sigmoid(gates[j]);
      }
      // c = f c + i g, hidden = o tanh(c)
      Values hidden(H);
      for (int64_t u = 0; u < H; ++u) {
        c[u] = gates[H + u] * c[u] + gates[u] * gates[2 * H + u];
        hidden[u] = layer.round_state(gates[3 * H + u] * std::tanh(c[u]));
      }
      if (layer.shape.projection) {
        for (int64_t p = 0; p < P; ++p) {
          double sum = 0;
          for (int64_t u = 0; u < H; ++u) sum += in.w_hr[p * H + u] * hidden[u];
          h[p] = layer.round_state(sum);
        }
      } else {
        h = hidden;
      }
      std::copy(h.begin(), h.end(), out.y.begin() + row * P);
      std::copy(c.begin(), c.end(), out.cells.begin() + row * H);
      std::copy(gates.begin(), gates.end(), out.gates.begin() + row * 4 * H);
    }
    out.h_n.insert(out.h_n.end(), h.begin(), h.end());
    out.c_n.insert(out.c_n.end(), c.begin(), c.end());
  }
  return out;
}

// `gates` and `cells` are those that the forward saved.
inline BackwardTruth reference_backward(const LayerValues& layer, int d, const Values& gates,
                                        const Values& cells, const IncomingGradients& grad) {
  const int64_t T = layer.shape.steps, N = layer.shape.batch;
  const int64_t H = layer.shape.hidden_size, P = layer.shape.output_size;
  const DirectionValues& in = layer.direction[d];
  BackwardTruth out;
  out.gates.assign(T * N * 4 * H, 0);
  out.output.assign(T * N * P, 0);
  for (int64_t n = 0; n < N; ++n) {
    Values dh(grad.h_n.begin() + n * P, grad.h_n.begin() + (n + 1) * P);
    Values dc(grad.c_n.begin() + n * H, grad.c_n.begin() + (n + 1) * H);
    for (int64_t s = layer.lengths[n] - 1; s >= 0; --s) {
      const int64_t t = time_of(s, layer.lengths[n], d), row = t * N + n;
      const bool marked = is_marked(layer, t, n);
      for (int64_t p = 0; p < P; ++p) {
        dh[p] += grad.y[row * P + p];
        out.output[row * P + p] = dh[p];
      }
      Values dhidden = dh;
      if (layer.shape.projection) {
        dhidden.assign(H, 0);
        for (int64_t u = 0; u < H; ++u) {
          for (int64_t p = 0; p < P; ++p) dhidden[u] += in.w_hr[p * H + u] * dh[p];
        }
      }
      const double* gate = gates.data() + row * 4 * H;
      double* dgate = out.gates.data() + row * 4 * H;
      for (int64_t u = 0; u < H; ++u) {
        const double i = gate[u], f = gate[H + u], g = gate[2 * H + u], o = gate[3 * H + u];
        double c_prev = 0;
        if (!marked) {
          const int64_t before = time_of(s - 1, layer.lengths[n], d) * N + n;
          c_prev = s > 0 ? cells[before * H + u] : in.c_0[n * H + u];
        }
        const double tanh_c = std::tanh(cells[row * H + u]);
        const double total =
            dc[u] + grad.cell_states[row * H + u] + dhidden[u] * o * (1 - tanh_c * tanh_c);
        dgate[u] = total * g * i * (1 - i);
        dgate[H + u] = total * c_prev * f * (1 - f);
        dgate[2 * H + u] = total * i * (1 - g * g);
        dgate[3 * H + u] = dhidden[u] * tanh_c * o * (1 - o);
        dc[u] = marked ? 0 : total * f;
      }
      for (int64_t p = 0; p < P; ++p) {
        dh[p] = 0;
        if (marked) continue;
        for (int64_t j = 0; j < 4 * H; ++j) dh[p] += in.w_hh[j * P + p] * dgate[j];
      }
    }
    out.h_0.insert(out.h_0.end(), dh.begin(), dh.end());
    out.c_0.insert(out.c_0.end(), dc.begin(), dc.end());
  }
  return out;
}

}  // namespace lstm_fused::test
