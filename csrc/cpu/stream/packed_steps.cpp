// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/stream/packed_steps.h"

#include <algorithm>

namespace lstm_fused::cpu {

void PackedSteps::PreparedRows::make(int64_t batch, int64_t groups, int64_t k_size,
                                     int64_t stride) {
  task.source.stride = stride;
  task.rows = batch;
  task.k_size = k_size;
  task.stride = quantized::operand_bytes(groups);
  rows = Buffer(batch * task.stride);
  scales = Buffer(batch * static_cast<int64_t>(sizeof(float)));
  task.out = static_cast<uint8_t*>(rows.get());
  task.scales = static_cast<float*>(scales.get());
}

void PackedSteps::PreparedRows::prepare(const quantized::QuantizedTable& table,
                                        const void* source) noexcept {
  task.source.base = source;
  table.prepare_rows(task);
}

PackedSteps::PackedSteps(const StreamModel& model, int64_t batch,
                         const std::vector<StreamLayerState>& states)
    : table_(*model.packed_table()), layers_(states.size()) {
  int64_t panels = 0;
  for (const StreamModel::Layer& layer : model.layers()) {
    panels = std::max(panels, layer.packed.w_ih.panels);
  }
  ahead_ = Buffer(batch * panels * quantized::kPanelColumns * static_cast<int64_t>(sizeof(float)));
  const quantized::PackedLayer& first = model.layers().front().packed;
  x_.make(batch, first.w_ih.groups, first.input_size, first.input_size);

  for (size_t i = 0; i < layers_.size(); ++i) {
    const quantized::PackedLayer& from = model.layers()[i].packed;
    Layer& layer = layers_[i];
    layer.state = states[i];
    layer.h.make(batch, from.w_hh.groups, from.output_size, layer.state.h_stride);
    quantized::InputGemm& input = layer.input;
    input.rows = batch;
    input.panel_end = from.w_ih.panels;
    input.operand = i == 0 ? x_.operand() : layers_[i - 1].h.operand();
    input.matrix = from.w_ih;
    input.bias = from.bias;
    input.out = static_cast<float*>(ahead_.get());
    input.out_stride = from.w_ih.panels * quantized::kPanelColumns;

    quantized::RecurrentStep& step = layer.cells;
    step.cell.rows = batch;
    step.cell.hidden_size = from.hidden_size;
    step.cell.panel_end = from.w_hh.panels;
    step.cell.c = layer.state.c;
    step.operand = layer.h.operand();
    step.matrix = from.w_hh;
    step.ahead = input.out;
    step.ahead_stride = input.out_stride;
    step.cell.y.stride = from.output_size;
    if (!from.projection) continue;
    step.cell.h = {layer.state.cell_output, layer.state.cell_output_stride, nullptr};
    step.cell.h_is_state = false;
    layer.cell_output.make(batch, from.w_hr.groups, from.hidden_size,
                           layer.state.cell_output_stride);
    layer.projection.rows = batch;
    layer.projection.panel_end = from.w_hr.panels;
    layer.projection.operand = layer.cell_output.operand();
    layer.projection.matrix = from.w_hr;
    layer.projection.y.stride = from.output_size;
  }
  for (size_t i = 0; i < layers_.size(); ++i) load_state(static_cast<int64_t>(i), 0);
}

void PackedSteps::load_state(int64_t index, int read) noexcept {
  Layer& layer = layers_[index];
  layer.h.prepare(table_, layer.state.h[read]);
}

void PackedSteps::run(int read, const float* x, float* y) noexcept {
  x_.prepare(table_, x);
  for (size_t i = 0; i < layers_.size(); ++i) {
    Layer& layer = layers_[i];
    float* const h = layer.state.h[1 - read];
    float* const out = i + 1 == layers_.size() ? y : nullptr;
    table_.input_gemm(layer.input);
    ForwardStep& cell = layer.cells.cell;
    // Serpentine sweep: a step begins with the panels that are still in a cache.
    cell.descending = read == 1;
    if (layer.state.cell_output) {
      table_.recurrent_step(layer.cells);
      layer.cell_output.prepare(table_, layer.state.cell_output);
      layer.projection.y.base = out;
      layer.projection.h = {h, layer.state.h_stride, nullptr};
      table_.output_projection(layer.projection);
    } else {
      cell.y.base = out;
      cell.h = {h, layer.state.h_stride, nullptr};
      table_.recurrent_step(layer.cells);
    }
    layer.h.prepare(table_, h);
  }
}

}  // namespace lstm_fused::cpu
