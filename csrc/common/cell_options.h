// SPDX-License-Identifier: BSD-3-Clause
// Options of a layer's cell, by which it computes more than nn.LSTM's. Notation as in lstm.h.
//
//   i, f, g, o as in lstm_cell.h, from a_i + w_ci·c_prev, a_f + w_cf·c_prev and a_o + w_co·c̃ with
//   peepholes (Gers et al. 2002); i = 1 − f with coupled gates (Greff et al. 2017)
//   c̃ = clip(f·c_prev + i·g)                                (Sak et al. 2014)
//   c = z_c·c_prev + (1 − z_c)·c̃    h = z_h·h_prev + (1 − z_h)·o·tanh(c̃)   (Krueger et al. 2017)
//   h_prev·mask enters the recurrent GEMM                    (Gal & Ghahramani 2016)
//   a reset puts reset_h and reset_c in the place of the state, and not zero
// and with layer normalisation (Ba et al. 2016, with the library haste's placement), n(v) = (v -
// mean(v)) / sqrt(var(v) + kNormEpsilon) over the features of a row:
//   a = gain_x·n(x·W_ih) + gain_h·n(h_prev·W_hh) + b        h = o·tanh(gain_c·n(c̃) + bias_c)
#pragma once

#include <cstdint>

namespace lstm_fused {

// Peepholes of a direction: w_ci, w_cf, w_co.
constexpr int kPeepholes = 3;

// Added to a variance ahead of its square root, as by nn.LayerNorm.
constexpr double kNormEpsilon = 1e-5;

// Products of a gate's pre-activation that are normalised: of x and of h.
constexpr int kNorms = 2;

// What all directions share.
struct CellOptions {
  bool coupled_gates = false;
  double cell_clip = 0;  // c̃ stays in [-cell_clip, cell_clip]; 0: no limit
  // The part of c_prev and h_prev that is kept where there are no masks: zoneout's expectation.
  double zoneout_c = 0, zoneout_h = 0;
};

// One direction's; what it does not have is null. Read only.
struct CellOptionInputs {
  const void* peephole = nullptr;   // (3, H) storage: w_ci, w_cf, w_co
  const void* h_mask = nullptr;     // (N, P) storage: factors of h_prev in the recurrent GEMM
  const uint8_t* keep_c = nullptr;  // rows of x, H each: where c_prev is kept (zoneout)
  const uint8_t* keep_h = nullptr;  // where h_prev is kept; only without output projection
  const void* reset_h = nullptr;    // (N, P) storage, with reset_c and a reset_mask
  const void* reset_c = nullptr;    // (N, H) storage
  const void* gains = nullptr;      // (2, 4H) storage: gain_x, gain_h; with cell_norm
  const void* cell_norm = nullptr;  // (2, H) storage: gain_c, bias_c
};

// What a forward with layer normalisation saves for the backward.
struct SavedNorms {
  void* normalised = nullptr;  // (M, 2, 4H) storage: n(x·W_ih), n(h_prev·W_hh); or null
  void* scales = nullptr;      // (M, 2) accumulator: 1 / sqrt(var + kNormEpsilon) of both
};

// The gradients of a direction's options; null: not wanted.
struct CellOptionGradients {
  void* peephole = nullptr;   // out (3, H) storage
  void* reset_h = nullptr;    // out (N, P) storage
  void* reset_c = nullptr;    // out (N, H) storage
  void* gains = nullptr;      // out (2, 4H) storage
  void* cell_norm = nullptr;  // out (2, H) storage
  void* bias = nullptr;       // out (4H) storage, with norms: of either bias
};

}  // namespace lstm_fused
