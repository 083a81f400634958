// SPDX-License-Identifier: BSD-3-Clause
// An op's tensors, checked, as the core's shapes and pointers.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "common/lstm.h"
#include "torch/tensors.h"

namespace lstm_fused {

// The inputs that forward and backward share. Shapes as in common/lstm.h.
struct Layer {
  LstmShape shape;
  DType dtype = DType::kFloat32;
  Device device;                     // input's, and that of all others
  int64_t steps = 0;                 // T of x and y; shape's is 0 where no row goes through them
  int64_t sequence_rows = 0;         // rows of x and y
  int64_t data_rows = 0;             // M
  SequenceLayout layout;             // make_layer only
  bool ragged = false;               // make_layer only: padded, and not all rows have T steps
  Tensor input;                      // contiguous (T, N, D) or (M, D)
  Tensor h_0, c_0;                   // contiguous (L, N, P), (L, N, H)
  std::vector<Tensor> weights;       // contiguous, all directions' in nn.LSTM's order
  std::optional<Tensor> lengths;     // make_device_layer only: contiguous (N) int64
  std::optional<Tensor> reset_mask;  // contiguous (T, N) bool

  int weights_per_direction() const { return static_cast<int>(weights.size()) / shape.directions; }
  bool has_bias() const { return weights_per_direction() >= 4; }
  LstmWeights direction_weights(int direction) const;
  const uint8_t* reset_flags() const;
};

// Throw Error or std::runtime_error where the tensors do not fit together.
//
// make_layer reads lengths and batch_sizes, on the CPU. make_device_layer leaves lengths where they
// are, on input's device, and takes padded sequences only; its data rows are all T·N.
Layer make_layer(const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                 const std::vector<Tensor>& weights, const std::optional<Tensor>& lengths,
                 const std::optional<Tensor>& batch_sizes, const std::optional<Tensor>& reset_mask);
// One step of one direction without projection: input (N, D), h and c (N, H).
Layer make_cell_layer(const Tensor& input, const Tensor& h, const Tensor& c,
                      const std::vector<Tensor>& weights);
Layer make_device_layer(const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                        const std::vector<Tensor>& weights, const std::optional<Tensor>& lengths,
                        const std::optional<Tensor>& reset_mask);

// A contiguous tensor with the given sizes and the layer's dtype and device; else throws.
Tensor checked(const Tensor& tensor, const char* name, const Sizes& sizes, const Layer& layer);

}  // namespace lstm_fused
