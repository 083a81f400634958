// SPDX-License-Identifier: BSD-3-Clause
// The weights of a stack of layers, packed once for steps that follow one another: what streams
// share, never written again.
#pragma once

#include <cstdint>
#include <vector>

#include "common/lstm.h"
#include "cpu/kernels/kernels.h"
#include "cpu/quantized/kernels.h"
#include "cpu/quantized/packed_weights.h"
#include "cpu/runtime/scratch.h"
#include "cpu/runtime/team.h"

namespace lstm_fused::cpu {

// One layer of one direction, in nn.LSTM's layout. Storage, row-major, contiguous.
struct StreamLayerWeights {
  int64_t input_size = 0;   // D
  int64_t hidden_size = 0;  // H
  int64_t output_size = 0;  // P; H where there is no w_hr
  LstmWeights weights;
};

// One layer's packed weights of low precision, a block of quantized/packed_weights.h.
struct StreamPackedWeights {
  const void* block = nullptr;
  int64_t bytes = 0;
};

// y = W·h + b after the last layer; absent where `weight` is null.
struct StreamHeadWeights {
  int64_t out_features = 0;      // O
  const void* weight = nullptr;  // (O, P) storage
  const void* bias = nullptr;    // (O) storage, or null
};

class StreamModel {
 public:
  struct Layer {
    int64_t input_size = 0, hidden_size = 0, output_size = 0;
    PanelMatrix w_ih, w_hh, w_hr;
    Buffer bias;  // gate order
    // In the place of the above, where the model has a packed_table().
    Buffer block;
    quantized::PackedLayer packed;
    bool has_projection() const { return w_hr.panels > 0 || packed.projection; }
  };
  struct Head {
    int64_t out_features = 0;  // 0: there is none
    PanelMatrix weight;
    Buffer bias;  // column order; zero where there is none
  };

  // Reads the weights and keeps none of the pointers. Throws Error where sizes are below 1, or
  // those of a layer are not those of the layer before.
  StreamModel(DType dtype, const std::vector<StreamLayerWeights>& layers,
              const StreamHeadWeights& head, const Parallel& parallel);
  // Copies packed weights, all of one type; float32 otherwise. Throws Error for these reasons, and
  // where a block is not whole.
  StreamModel(const std::vector<StreamPackedWeights>& layers, const StreamHeadWeights& head,
              const Parallel& parallel);

  DType dtype() const { return dtype_; }
  const KernelTable& table() const { return table_; }
  // The kernels of packed weights; null where they are panels of the dtype.
  const quantized::QuantizedTable* packed_table() const { return packed_table_; }
  const std::vector<Layer>& layers() const { return layers_; }
  const Head& head() const { return head_; }
  int64_t input_size() const { return layers_.front().input_size; }
  int64_t output_size() const {
    return head_.out_features > 0 ? head_.out_features : layers_.back().output_size;
  }

 private:
  void add_head(const StreamHeadWeights& head, Packer& packer);

  const DType dtype_;
  const KernelTable& table_;
  const quantized::QuantizedTable* packed_table_ = nullptr;
  std::vector<Layer> layers_;
  Head head_;
};

}  // namespace lstm_fused::cpu
