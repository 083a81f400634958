// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/stream/model.h"

#include <cstring>

#include "common/error.h"
#include "common/integers.h"
#include "cpu/cpu_features.h"

namespace lstm_fused::cpu {
namespace {

void check_head(const StreamHeadWeights& head) {
  LSTM_CHECK(!head.weight || head.out_features >= 1,
             "the linear head must have at least one output, got ", head.out_features);
}

// What layer i takes is what the layer before gives. `Sizes` has input_size and output_size.
template <typename Sizes>
void check_order(const std::vector<Sizes>& layers, size_t i) {
  LSTM_CHECK(i == 0 || layers[i].input_size == layers[i - 1].output_size, "layer ", i, " takes ",
             layers[i].input_size, " features, but the layer before gives ",
             layers[i - 1].output_size);
}

void check_layers(const std::vector<StreamLayerWeights>& layers, const StreamHeadWeights& head) {
  LSTM_CHECK(!layers.empty(), "a stream needs at least one layer, got none");
  for (size_t i = 0; i < layers.size(); ++i) {
    const StreamLayerWeights& layer = layers[i];
    LstmShape shape;
    shape.steps = shape.batch = 1;
    shape.input_size = layer.input_size;
    shape.hidden_size = layer.hidden_size;
    shape.output_size = layer.output_size;
    shape.projection = layer.weights.w_hr != nullptr;
    check_shape(shape);
    LSTM_CHECK(layer.input_size >= 1, "layer ", i, ": input_size must be at least 1, got ",
               layer.input_size);
    LSTM_CHECK(layer.weights.w_ih && layer.weights.w_hh, "layer ", i, " has no weights");
    check_order(layers, i);
  }
  check_head(head);
}

}  // namespace

StreamModel::StreamModel(DType dtype, const std::vector<StreamLayerWeights>& layers,
                         const StreamHeadWeights& head, const Parallel& parallel)
    : dtype_(dtype), table_(kernel_table(best_isa(), dtype)) {
  check_layers(layers, head);
  layers_.resize(layers.size());
  Packer packer(table_);
  for (size_t i = 0; i < layers.size(); ++i) {
    const LstmWeights& from = layers[i].weights;
    Layer& layer = layers_[i];
    layer.input_size = layers[i].input_size;
    layer.hidden_size = layers[i].hidden_size;
    layer.output_size = layers[i].output_size;
    layer.bias =
        Buffer(round_up(layer.hidden_size, table_.vector_width) * kGates * accumulator_size(dtype));
    table_.pack_bias(from.b_ih, from.b_hh, layer.hidden_size, layer.bias.get());
    packer.add_gates(from.w_ih, layer.hidden_size, layer.input_size, layer.w_ih);
    packer.add_gates(from.w_hh, layer.hidden_size, layer.output_size, layer.w_hh);
    if (from.w_hr) {
      packer.add_transposed(from.w_hr, layer.output_size, layer.hidden_size, layer.w_hr);
    }
  }
  add_head(head, packer);
  packer.run(parallel);
}

StreamModel::StreamModel(const std::vector<StreamPackedWeights>& layers,
                         const StreamHeadWeights& head, const Parallel& parallel)
    : dtype_(DType::kFloat32), table_(kernel_table(best_isa(), dtype_)) {
  LSTM_CHECK(!layers.empty(), "a stream needs at least one layer, got none");
  check_head(head);
  layers_.resize(layers.size());
  for (size_t i = 0; i < layers.size(); ++i) {
    Layer& layer = layers_[i];
    quantized::read_layer(layers[i].block, layers[i].bytes);
    layer.block = Buffer(layers[i].bytes);
    std::memcpy(layer.block.get(), layers[i].block, layers[i].bytes);
    layer.packed = quantized::read_layer(layer.block.get(), layers[i].bytes);
    layer.input_size = layer.packed.input_size;
    layer.hidden_size = layer.packed.hidden_size;
    layer.output_size = layer.packed.output_size;
    const quantized::WeightType type = layers_.front().packed.type;
    LSTM_CHECK(layer.packed.type == type, "packed weights of a stream must have one type, got ",
               quantized::weight_type_name(type), " and ",
               quantized::weight_type_name(layer.packed.type));
    check_order(layers_, i);
  }
  packed_table_ = &quantized::quantized_table(quantized::quantized_isa(cpu_facts(1)),
                                              layers_.front().packed.type);
  Packer packer(table_);
  add_head(head, packer);
  packer.run(parallel);
}

void StreamModel::add_head(const StreamHeadWeights& head, Packer& packer) {
  if (!head.weight) return;
  head_.out_features = head.out_features;
  packer.add_transposed(head.weight, head.out_features, layers_.back().output_size, head_.weight);
  const int64_t bytes = round_up(head.out_features, table_.nr()) * accumulator_size(dtype_);
  head_.bias = Buffer(bytes);
  std::memset(head_.bias.get(), 0, bytes);
  if (head.bias) table_.storage_to_accumulator(head.bias, head.out_features, head_.bias.get());
}

}  // namespace lstm_fused::cpu
