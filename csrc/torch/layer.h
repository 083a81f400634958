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

// The inputs that forward and backward share, on either device. Shapes as in common/lstm.h.
struct Layer {
  LstmShape shape;
  DType dtype = DType::kFloat32;
  Device device;                     // input's, and that of all others
  int64_t steps = 0;                 // T of x and y; shape's is 0 where no row goes through them
  int64_t sequence_rows = 0;         // rows of x and y: M when packed, else T·N
  bool packed = false;               // input is (M, D), else (T, N, D)
  Tensor input;                      // contiguous
  Tensor h_0, c_0;                   // contiguous (L, N, P), (L, N, H)
  std::vector<Tensor> weights;       // contiguous, all directions' in nn.LSTM's order
  std::optional<Tensor> reset_mask;  // contiguous (T, N) bool

  int weights_per_direction() const { return static_cast<int>(weights.size()) / shape.directions; }
  bool has_bias() const { return weights_per_direction() >= 4; }
  LstmWeights direction_weights(int direction) const;
  const uint8_t* reset_flags() const;
};

// What a CPU op is given: it has read lengths and batch_sizes, which say how the rows lie.
struct CpuLayer : Layer {
  SequenceLayout layout;

  // Whether sequences have rows past a length, which no kernel writes.
  bool is_ragged() const { return layout.data_rows() != sequence_rows; }
};

// Layers on one another, all on dense sequences and of the sizes of the first one.
struct CpuStack {
  CpuLayer first;                 // with the weights of all, layer by layer; without states
  std::vector<LstmShape> shapes;  // of each layer

  LstmWeights direction_weights(int64_t layer, int direction) const;
};

// What a CUDA op is given: padded sequences, whose lengths are left for its kernels to read.
struct CudaLayer : Layer {
  std::optional<Tensor> lengths;  // contiguous (N) int64, on the device

  const int64_t* lengths_pointer() const;
};

// Throw Error or std::runtime_error where the tensors do not fit together.
CpuLayer make_cpu_layer(const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                        const std::vector<Tensor>& weights, const std::optional<Tensor>& lengths,
                        const std::optional<Tensor>& batch_sizes,
                        const std::optional<Tensor>& reset_mask);
// Without states and weights, whose sizes are given, for the op that checks those itself.
CpuLayer make_unweighted_layer(const Tensor& input, int64_t batch, int64_t hidden_size,
                               int64_t output_size, int64_t directions,
                               const std::optional<Tensor>& lengths,
                               const std::optional<Tensor>& batch_sizes,
                               const std::optional<Tensor>& reset_mask);
// At least one layer, each with as many of the weights; input (T, N, D).
CpuStack make_cpu_stack(const Tensor& input, const std::vector<Tensor>& weights, int64_t directions,
                        int64_t num_layers);
// One step of one direction without projection: input (N, D), h and c (N, H).
CpuLayer make_cell_layer(const Tensor& input, const Tensor& h, const Tensor& c,
                         const std::vector<Tensor>& weights);
// Refuses batch_sizes. Does not wait for the device.
CudaLayer make_cuda_layer(const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                          const std::vector<Tensor>& weights, const std::optional<Tensor>& lengths,
                          const std::optional<Tensor>& batch_sizes,
                          const std::optional<Tensor>& reset_mask);

// The dtype that sums and cell states are kept in.
ScalarType accumulator_type(const Layer& layer);

// A contiguous tensor with the given sizes and the layer's dtype and device; else throws.
Tensor checked(const Tensor& tensor, const char* name, const Sizes& sizes, const Layer& layer);
// Cell states that a forward saved, as `checked` but in accumulator_type.
Tensor checked_cells(const Tensor& cells, const Sizes& sizes, const Layer& layer);

}  // namespace lstm_fused
