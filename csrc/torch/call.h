// SPDX-License-Identifier: BSD-3-Clause
// The tensors of a forward and of a backward, and the core's view of one direction of them.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "common/lstm.h"
#include "cpu/gradients/layer_backward.h"
#include "torch/layer.h"
#include "torch/tensors.h"

namespace lstm_fused {

// As in schemas.h.
using ForwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using InferenceResult = std::tuple<Tensor, Tensor, Tensor>;
using BackwardResult = std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>>;
using GateGradientResult =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// The dtype that sums and cell states are kept in.
ScalarType accumulator_type(const Layer& layer);

// Uninitialised gradients of all weights, in their order; of none where they are not wanted.
std::vector<Tensor> new_weight_gradients(const Layer& layer, bool wanted);

// A state of zeros, (rows, features) with `directions` in front of it where there are any.
Tensor zero_state(const Tensor& input, int64_t directions, int64_t rows, int64_t features);

// (T, N, columns), or (M, columns) when packed: y's layout.
Sizes sequence_sizes(const Layer& layer, int64_t columns);
Tensor new_sequence(const Layer& layer, int64_t columns);

// What a forward returns; not initialised, but for the rows that its kernels do not write. Those
// not asked for are empty.
struct ForwardTensors {
  Tensor y, h_n, c_n, cell_states, gates, cells;

  ForwardTensors(const Layer& layer, bool save_cells, bool save_gates, bool return_cell_states);
  LstmForwardDirection direction(const Layer& layer, int direction) const;
  ForwardResult result() const { return {y, h_n, c_n, cell_states, gates, cells}; }
};

// What a backward gets, checked and contiguous, an absent gradient being empty; and what its
// recurrence returns, not initialised.
//
// keep_gate_gradients: with memory for the gradients of all gates and of h. Gates that the forward
// did not save are then to be rebuilt in the memory of grad_gates, which the recurrence overwrites
// step by step: `gates` is grad_gates itself.
struct BackwardTensors {
  Tensor grad_y, grad_h_n, grad_c_n, grad_cell_states;
  Tensor y, cells;
  Tensor grad_gates;  // (L, M, 4H), or empty
  bool rebuilds_gates = false;
  Tensor gates;
  Tensor grad_output;         // (L, M, P), or empty; no rows without projection
  Tensor grad_h_0, grad_c_0;  // empty unless `need_states`

  BackwardTensors(const Layer& layer, const std::optional<Tensor>& grad_y,
                  const std::optional<Tensor>& grad_h_n, const std::optional<Tensor>& grad_c_n,
                  const std::optional<Tensor>& grad_cell_states, const Tensor& y,
                  const Tensor& gates, const Tensor& cells, bool need_states,
                  bool keep_gate_gradients);
  LstmBackwardDirection direction(const Layer& layer, int direction) const;
  // grad_weights: of all directions, in the weights' order; or empty.
  cpu::LayerBackwardArgs::Direction layer_direction(const Layer& layer, int direction,
                                                    const std::vector<Tensor>& grad_weights) const;
  LstmGatesDirection gates_direction(const Layer& layer, int direction) const;
};

}  // namespace lstm_fused
