// SPDX-License-Identifier: BSD-3-Clause
// The tensors of a forward and of a backward, and the core's view of one direction of them.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "common/lstm.h"
#include "torch/layer.h"
#include "torch/tensors.h"

namespace lstm_fused {

// What the ops return, in the order of schemas.h.
using ForwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using InferenceResult = std::tuple<Tensor, Tensor, Tensor>;
using BackwardResult = std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>>;

// Uninitialised gradients of all weights, in their order; with `samples`, (samples, …) each.
std::vector<Tensor> new_weight_gradients(const Layer& layer, std::optional<int64_t> samples = {});

// A state of zeros, (rows, features) with `directions` in front of it where there are any.
Tensor zero_state(const Tensor& input, int64_t directions, int64_t rows, int64_t features);

// What a forward returns, not initialised; what is not asked for is empty.
struct ForwardTensors {
  Tensor y, h_n, c_n, cell_states, gates, cells;

  ForwardTensors(const Layer& layer, bool save_cells, bool save_gates, bool return_cell_states);
  LstmForwardDirection direction(const Layer& layer, int direction) const;
  ForwardResult result() const { return {y, h_n, c_n, cell_states, gates, cells}; }
};

// Which gradients a backward gives.
struct BackwardNeeds {
  bool input = false, states = false, weights = false;
  std::optional<int64_t> samples;  // those of the weights are of each of so many samples
};

// What a backward gets, checked and contiguous, an absent gradient being empty; and what it gives,
// not initialised, what is not needed being empty.
struct BackwardTensors {
  Tensor grad_y, grad_h_n, grad_c_n, grad_cell_states;
  Tensor y, gates, cells;
  Tensor grad_input, grad_h_0, grad_c_0;
  std::vector<Tensor> grad_weights;  // in the weights' order

  BackwardTensors(const Layer& layer, const std::optional<Tensor>& grad_y,
                  const std::optional<Tensor>& grad_h_n, const std::optional<Tensor>& grad_c_n,
                  const std::optional<Tensor>& grad_cell_states, const Tensor& y,
                  const Tensor& gates, const Tensor& cells, const BackwardNeeds& needs);
  LayerBackwardDirection direction(const Layer& layer, int direction) const;
  BackwardResult result() const { return {grad_input, grad_h_0, grad_c_0, grad_weights}; }
};

// Points at the gradients of one direction's weights, of all directions' in the weights' order.
void set_weight_gradients(const Layer& layer, const std::vector<Tensor>& grads, int direction,
                          LayerBackwardDirection& out);

}  // namespace lstm_fused
