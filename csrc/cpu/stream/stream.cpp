// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/stream/stream.h"

#include <cstring>
#include <utility>

#include "common/error.h"
#include "common/integers.h"
#include "common/pointers.h"
#include "cpu/runtime/flush_denormals.h"

namespace lstm_fused::cpu {
namespace {

Buffer zeros(int64_t bytes) {
  Buffer buffer(bytes);
  std::memset(buffer.get(), 0, bytes);
  return buffer;
}

void check_batch(const StreamModel& model, int64_t batch) {
  LSTM_CHECK(batch >= 1, "a stream's batch_size must be at least 1, got ", batch);
  for (const StreamModel::Layer& layer : model.layers()) {
    LstmShape shape;
    shape.steps = 1;
    shape.batch = batch;
    shape.input_size = layer.input_size;
    shape.hidden_size = layer.hidden_size;
    shape.output_size = layer.output_size;
    shape.projection = layer.has_projection();
    check_shape(shape);  // no product of sizes overflows
  }
}

}  // namespace

Stream::Stream(std::shared_ptr<const StreamModel> model, int64_t batch)
    : model_(std::move(model)),
      batch_(batch),
      storage_(dtype_size(model_->dtype())),
      operand_(model_->table().operand_size),
      accumulator_(accumulator_size(model_->dtype())) {
  check_batch(*model_, batch);
  if (operand_ != storage_) x_ = Buffer(batch * model_->input_size() * operand_);
  layers_.resize(model_->layers().size());
  for (size_t i = 0; i < layers_.size(); ++i) {
    const StreamModel::Layer& from = model_->layers()[i];
    Layer& layer = layers_[i];
    layer.h_stride = round_up(from.output_size, kCacheLine / operand_);
    layer.cell_output_stride = round_up(from.hidden_size, kCacheLine / operand_);
    for (Buffer& h : layer.h) h = zeros(batch * layer.h_stride * operand_);
    layer.c = zeros(batch * from.hidden_size * accumulator_);
    if (from.has_projection()) {
      layer.cell_output = zeros(batch * layer.cell_output_stride * operand_);
    }
  }
  if (model_->packed_table()) {
    std::vector<StreamLayerState> states;
    for (const Layer& layer : layers_) states.push_back(state_of(layer));
    packed_ = std::make_unique<PackedSteps>(*model_, batch, states);
  } else {
    for (size_t i = 0; i < layers_.size(); ++i) prepare(static_cast<int64_t>(i));
  }
  prepare_head();
}

void Stream::prepare_head() {
  const StreamModel::Head& head = model_->head();
  if (head.out_features == 0) return;
  head_.rows = batch_;
  head_.columns = head.out_features;
  head_.panel_end = head.weight.panels;
  head_.product = {{nullptr, layers_.back().h_stride, nullptr},
                   model_->layers().back().output_size,
                   head.weight.data.get()};
  head_.bias = head.bias.get();
  head_.out.stride = head.out_features;
}

// With packed weights the operands of the state are float32 too.
StreamLayerState Stream::state_of(const Layer& layer) const {
  StreamLayerState state;
  for (int i = 0; i < 2; ++i) state.h[i] = static_cast<float*>(layer.h[i].get());
  state.c = static_cast<float*>(layer.c.get());
  state.cell_output = static_cast<float*>(layer.cell_output.get());
  state.h_stride = layer.h_stride;
  state.cell_output_stride = layer.cell_output_stride;
  return state;
}

Stream::Stream(const Stream& other) : Stream(other.model_, other.batch_) { copy_state(other); }

void Stream::copy_state(const Stream& other) {
  for (size_t i = 0; i < layers_.size(); ++i) {
    const StreamModel::Layer& from = model_->layers()[i];
    const Layer& source = other.layers_[i];
    const auto index = static_cast<int64_t>(i);
    if (operand_ != other.operand_) {  // of another instruction set, which holds h in another type
      const Buffer h(batch_ * from.output_size * storage_), c(batch_ * from.hidden_size * storage_);
      other.get_state(index, h.get(), c.get());
      set_state(index, h.get(), c.get());
      continue;
    }
    std::memcpy(layers_[i].h[read_].get(), source.h[other.read_].get(),
                batch_ * source.h_stride * operand_);
    std::memcpy(layers_[i].c.get(), source.c.get(), batch_ * from.hidden_size * accumulator_);
    if (packed_) packed_->load_state(index, read_);
  }
}

// All of a layer's step but the addresses of x and y.
void Stream::prepare(int64_t index) {
  const StreamModel::Layer& from = model_->layers()[index];
  Layer& layer = layers_[index];
  const bool is_first = index == 0;
  const bool is_last = index + 1 == static_cast<int64_t>(layers_.size());
  const bool gives_y = is_last && model_->head().out_features == 0;
  for (int read = 0; read < 2; ++read) {
    ForwardStep& step = layer.cells[read];
    step.rows = batch_;
    step.hidden_size = from.hidden_size;
    step.panel_end = ceil_div(from.hidden_size, model_->table().vector_width);
    step.descending = read == 1;
    // The layer before has written its new state by then: the buffer that it does not read.
    step.input.operand =
        is_first ? Rows{nullptr, from.input_size, nullptr}
                 : Rows{layers_[index - 1].h[1 - read].get(), layers_[index - 1].h_stride, nullptr};
    step.input.size = from.input_size;
    step.input.panels = from.w_ih.data.get();
    step.recurrent = {
        {layer.h[read].get(), layer.h_stride, nullptr}, from.output_size, from.w_hh.data.get()};
    step.bias = from.bias.get();
    step.c = layer.c.get();
    if (!from.has_projection()) {
      step.h = {layer.h[1 - read].get(), layer.h_stride, nullptr};
      if (gives_y) step.y.stride = from.output_size;
      continue;
    }
    step.h = {layer.cell_output.get(), layer.cell_output_stride, nullptr};
    step.h_is_state = false;
    LinearStep& projection = layer.projections[read];
    projection.rows = batch_;
    projection.columns = from.output_size;
    projection.panel_end = from.w_hr.panels;
    projection.product = {{layer.cell_output.get(), layer.cell_output_stride, nullptr},
                          from.hidden_size,
                          from.w_hr.data.get()};
    projection.operand_out = {layer.h[1 - read].get(), layer.h_stride, nullptr};
    if (gives_y) projection.out.stride = from.output_size;
  }
}

// y is null where a head follows.
void Stream::run_layers(const void* x, void* y) noexcept {
  const KernelTable& table = model_->table();
  if (x_.get()) {
    table.storage_to_operand(x, batch_ * model_->input_size(), x_.get());
    x = x_.get();
  }
  layers_.front().cells[read_].input.operand.base = x;
  for (size_t i = 0; i < layers_.size(); ++i) {
    Layer& layer = layers_[i];
    void* const out = i + 1 == layers_.size() ? y : nullptr;
    const bool has_projection = model_->layers()[i].has_projection();
    if (!has_projection) layer.cells[read_].y.base = out;
    table.forward_step(layer.cells[read_]);
    if (has_projection) {
      layer.projections[read_].out.base = out;
      table.linear_step(layer.projections[read_]);
    }
  }
}

void Stream::run_step(const void* x, void* y) noexcept {
  const bool has_head = model_->head().out_features > 0;
  void* const out = has_head ? nullptr : y;
  if (packed_) {
    packed_->run(read_, static_cast<const float*>(x), static_cast<float*>(out));
  } else {
    run_layers(x, out);
  }
  read_ = 1 - read_;
  if (has_head) {
    head_.product.operand.base = layers_.back().h[read_].get();
    head_.out.base = y;
    model_->table().linear_step(head_);
  }
}

void Stream::step(const void* x, void* y) noexcept {
  const FlushDenormals flush;
  run_step(x, y);
}

void Stream::run(int64_t steps, const void* x, void* y) noexcept {
  const FlushDenormals flush;
  for (int64_t s = 0; s < steps; ++s) {
    run_step(advance(x, s * batch_ * model_->input_size(), storage_),
             advance(y, s * batch_ * model_->output_size(), storage_));
  }
}

void Stream::reset(const uint8_t* mask) noexcept {
  for (size_t i = 0; i < layers_.size(); ++i) {
    Layer& layer = layers_[i];
    const int64_t hidden = model_->layers()[i].hidden_size;
    for (int64_t row = 0; row < batch_; ++row) {
      if (mask && mask[row] == 0) continue;
      std::memset(advance(layer.h[read_].get(), row * layer.h_stride, operand_), 0,
                  layer.h_stride * operand_);
      std::memset(advance(layer.c.get(), row * hidden, accumulator_), 0, hidden * accumulator_);
    }
    if (packed_) packed_->load_state(static_cast<int64_t>(i), read_);
  }
}

void Stream::get_state(int64_t index, void* h, void* c) const noexcept {
  const Layer& layer = layers_[index];
  const StreamModel::Layer& from = model_->layers()[index];
  const KernelTable& table = model_->table();
  for (int64_t row = 0; row < batch_; ++row) {
    table.operand_to_storage(advance(layer.h[read_].get(), row * layer.h_stride, operand_),
                             from.output_size, advance(h, row * from.output_size, storage_));
  }
  table.accumulator_to_storage(layer.c.get(), batch_ * from.hidden_size, c);
}

void Stream::set_state(int64_t index, const void* h, const void* c) noexcept {
  Layer& layer = layers_[index];
  const StreamModel::Layer& from = model_->layers()[index];
  const KernelTable& table = model_->table();
  for (int64_t row = 0; row < batch_; ++row) {
    table.storage_to_operand(advance(h, row * from.output_size, storage_), from.output_size,
                             advance(layer.h[read_].get(), row * layer.h_stride, operand_));
  }
  table.storage_to_accumulator(c, batch_ * from.hidden_size, layer.c.get());
  if (packed_) packed_->load_state(index, read_);
}

}  // namespace lstm_fused::cpu
