// SPDX-License-Identifier: BSD-3-Clause
// Options of a layer's cell, by which it computes more than nn.LSTM's. Notation as in lstm.h.
//
//   i, f, g, o as in lstm_cell.h, from a_i + w_ci·c_prev, a_f + w_cf·c_prev and a_o + w_co·c̃ with
//   peepholes (Gers et al. 2002); i = 1 − f with coupled gates (Greff et al. 2017)
//   c̃ = clip(f·c_prev + i·g)                                (Sak et al. 2014)
//   c = z_c·c_prev + (1 − z_c)·c̃    h = z_h·h_prev + (1 − z_h)·o·tanh(c̃)   (Krueger et al. 2017)
//   h_prev·mask enters the recurrent GEMM                    (Gal & Ghahramani 2016)
//   a reset puts reset_h and reset_c in the place of the state, and not zero
#pragma once

#include <cstdint>

namespace lstm_fused {

// Peepholes of a direction: w_ci, w_cf, w_co.
constexpr int kPeepholes = 3;

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
  const uint8_t* keep_h = nullptr;  // the same of h_prev; only without output projection
  const void* reset_h = nullptr;    // (N, P) storage, with reset_c and a reset_mask
  const void* reset_c = nullptr;    // (N, H) storage
};

// Their gradients; null: not wanted.
struct CellOptionGradients {
  void* peephole = nullptr;  // out (3, H) storage
  void* reset_h = nullptr;   // out (N, P) storage
  void* reset_c = nullptr;   // out (N, H) storage
};

}  // namespace lstm_fused
