// SPDX-License-Identifier: BSD-3-Clause
// A stream's steps on packed weights of low precision (quantized/packed_weights.h).
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/quantized/kernels.h"
#include "cpu/runtime/scratch.h"
#include "cpu/stream/model.h"

namespace lstm_fused::cpu {

// Where a stream keeps a layer's state, float32; it outlives the steps.
struct StreamLayerState {
  float* h[2] = {};              // (N, P), rows of h_stride
  float* c = nullptr;            // (N, H)
  float* cell_output = nullptr;  // (N, H), rows of cell_output_stride; with output projection
  int64_t h_stride = 0, cell_output_stride = 0;
};

// Each h is prepared for the kernels once: the layer behind reads it in the same step, and its own
// layer in the next one. After construction nothing allocates or throws.
class PackedSteps {
 public:
  PackedSteps(const StreamModel& model, int64_t batch, const std::vector<StreamLayerState>& states);

  // Takes over h[read], which another than `run` has written.
  void load_state(int64_t layer, int read) noexcept;
  // One step, which reads h[read] of all layers and writes the others: x (N, D), y (N, P) or null.
  void run(int read, const float* x, float* y) noexcept;

 private:
  // Rows as the kernels want them.
  struct PreparedRows {
    quantized::PrepareRows task;
    Buffer rows, scales;

    void make(int64_t batch, int64_t groups, int64_t k_size, int64_t stride);
    void prepare(const quantized::QuantizedTable& table, const void* source) noexcept;
    quantized::Operand operand() const { return {task.out, task.stride, task.scales}; }
  };
  struct Layer {
    StreamLayerState state;
    PreparedRows h, cell_output;
    quantized::InputGemm input;
    quantized::RecurrentStep cells;
    quantized::OutputProjection projection;
  };

  const quantized::QuantizedTable& table_;
  PreparedRows x_;
  Buffer ahead_;  // x·W_ihᵀ + bias of a layer
  std::vector<Layer> layers_;
};

}  // namespace lstm_fused::cpu
