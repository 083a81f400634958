// SPDX-License-Identifier: BSD-3-Clause
#include "torch/layer.h"

#include <string>

#include "common/error.h"

namespace lstm_fused {
namespace {

DType to_dtype(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      fail("input must be float32, float64, bfloat16 or float16, got ", dtype_text(type));
  }
}

std::string shape_text(const Tensor& tensor) {
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i < tensor.dim(); ++i) sizes.push_back(tensor.size(i));
  return lstm_fused::shape_text(tensor.dim(), sizes.data());
}

void check_integers(const Tensor& tensor, const char* name) {
  const ScalarType type = tensor.scalar_type();
  LSTM_CHECK(type == ScalarType::Long || type == ScalarType::Int, name,
             " must be int32 or int64, got ", dtype_text(type));
}

std::vector<int64_t> read_integers(const Tensor& tensor, const char* name) {
  LSTM_CHECK(tensor.dim() == 1, name, " must have 1 dimension, got ", tensor.dim());
  LSTM_CHECK(tensor.is_cpu(), name, " must be on the CPU, got ", device_of(tensor).text());
  check_integers(tensor, name);
  const Tensor contiguous = to_contiguous(tensor, name);
  const int64_t n = contiguous.size(0);
  if (contiguous.scalar_type() == ScalarType::Long) {
    const auto* p = static_cast<const int64_t*>(contiguous.const_data_ptr());
    return {p, p + n};
  }
  const auto* p = static_cast<const int32_t*>(contiguous.const_data_ptr());
  return {p, p + n};
}

void check_rank(const Tensor& input, const Layer& layer) {
  const int rank = layer.packed ? 2 : 3;
  LSTM_CHECK(input.dim() == rank, "input must have ", rank, " dimensions, got ", input.dim());
}

void read_input(const Tensor& input, Layer& layer) {
  check_rank(input, layer);
  layer.dtype = to_dtype(input.scalar_type());
  layer.device = device_of(input);
  layer.shape.input_size = input.size(layer.packed ? 1 : 2);
}

// Whether w_hr is among so many weights of all directions.
bool has_projection(int64_t weights, int64_t directions) {
  const int64_t each = weights / directions;
  LSTM_CHECK(each * directions == weights && each >= 2 && each <= 5,
             "weights must hold 2 to 5 tensors for each direction, got ", weights);
  return each == 3 || each == 5;
}

void read_shape(const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                const std::vector<Tensor>& weights, Layer& layer) {
  check_rank(input, layer);
  LSTM_CHECK(h_0.dim() == 3 && c_0.dim() == 3, "h_0 and c_0 must have 3 dimensions, got ",
             h_0.dim(), " and ", c_0.dim());
  read_input(input, layer);
  LstmShape& shape = layer.shape;
  LSTM_CHECK(h_0.size(0) == 1 || h_0.size(0) == 2, "h_0 must hold 1 or 2 directions, got ",
             h_0.size(0));
  shape.directions = static_cast<int>(h_0.size(0));
  shape.batch = h_0.size(1);
  shape.output_size = h_0.size(2);
  shape.hidden_size = c_0.size(2);
  shape.projection = has_projection(static_cast<int64_t>(weights.size()), shape.directions);
}

void check_device(const Tensor& tensor, const char* name, const Layer& layer) {
  const Device device = device_of(tensor);
  LSTM_CHECK(device == layer.device, name, " must be on ", layer.device.text(),
             ", as input is, got ", device.text());
}

void check_place(const Tensor& tensor, const char* name, const Sizes& sizes, const Layer& layer) {
  LSTM_CHECK(sizes.equals(tensor), name, " must have shape ", sizes.text(), ", got ",
             shape_text(tensor));
  check_device(tensor, name, layer);
}

// T of padded sequences.
void read_steps(const Tensor& input, Layer& layer) {
  layer.shape.steps = layer.steps = input.size(0);
  LSTM_CHECK(input.size(1) == layer.shape.batch, "h_0 must hold ", input.size(1),
             " rows as input does, got ", layer.shape.batch);
}

// Checks the sizes before they are multiplied.
void check_sizes(const LstmShape& shape) {
  check_shape(shape);
  LSTM_CHECK(shape.steps >= 1, "Expected sequence length to be larger than 0 in RNN");
  LSTM_CHECK(shape.input_size >= 1, "input must have at least 1 feature, got ", shape.input_size);
}

// Appends `count` weights of a layer of this shape, from `weights` on, to those of `layer`.
void append_weights(const Tensor* weights, size_t count, const LstmShape& s, Layer& layer) {
  const size_t each = count / s.directions;
  const int64_t gates = kGates * s.hidden_size;
  for (size_t i = 0; i < count; ++i) {
    const size_t k = i % each;
    if (k == 0) {
      layer.weights.push_back(checked(weights[i], "w_ih", {gates, s.input_size}, layer));
    } else if (k == 1) {
      layer.weights.push_back(checked(weights[i], "w_hh", {gates, s.output_size}, layer));
    } else if (s.projection && k == each - 1) {
      layer.weights.push_back(checked(weights[i], "w_hr", {s.output_size, s.hidden_size}, layer));
    } else {
      layer.weights.push_back(checked(weights[i], k == 2 ? "b_ih" : "b_hh", {gates}, layer));
    }
  }
}

void check_weights(const std::vector<Tensor>& weights, Layer& layer) {
  append_weights(weights.data(), weights.size(), layer.shape, layer);
}

// The weights of one direction: `each` of them, the first at `from`.
LstmWeights weight_pointers(const Tensor* from, int64_t each, bool projection) {
  LstmWeights out;
  out.w_ih = from[0].const_data_ptr();
  out.w_hh = from[1].const_data_ptr();
  if (each >= 4) {
    out.b_ih = from[2].const_data_ptr();
    out.b_hh = from[3].const_data_ptr();
  }
  if (projection) out.w_hr = from[each - 1].const_data_ptr();
  return out;
}

void check_mask(const std::optional<Tensor>& reset_mask, Layer& layer) {
  if (!reset_mask) return;
  LSTM_CHECK(reset_mask->scalar_type() == ScalarType::Bool, "reset_mask must be bool, got ",
             dtype_text(reset_mask->scalar_type()));
  check_device(*reset_mask, "reset_mask", layer);
  const Sizes sizes = {layer.steps, layer.shape.batch};
  LSTM_CHECK(sizes.equals(*reset_mask), "reset_mask must have shape ", sizes.text(), ", got ",
             shape_text(*reset_mask));
  layer.reset_mask = to_contiguous(*reset_mask, "reset_mask");
}

// Checks every tensor against the shape.
void check_tensors(const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                   const std::vector<Tensor>& weights, const std::optional<Tensor>& reset_mask,
                   Layer& layer) {
  const LstmShape& shape = layer.shape;
  layer.input = to_contiguous(input, "input");
  layer.h_0 = checked(h_0, "h_0", {shape.directions, shape.batch, shape.output_size}, layer);
  layer.c_0 = checked(c_0, "c_0", {shape.directions, shape.batch, shape.hidden_size}, layer);
  check_weights(weights, layer);
  check_mask(reset_mask, layer);
}

// Lays out the sequences, and checks the sizes.
void lay_out(const Tensor& input, const std::optional<Tensor>& lengths,
             const std::optional<Tensor>& batch_sizes, const std::optional<Tensor>& reset_mask,
             CpuLayer& layer) {
  LstmShape& shape = layer.shape;
  if (batch_sizes) {
    LSTM_CHECK(!lengths && !reset_mask, lengths ? "lengths" : "reset_mask",
               " does not go with a PackedSequence, got both; pass padded input instead");
    std::vector<int64_t> sizes = read_integers(*batch_sizes, "batch_sizes");
    LSTM_CHECK(sizes.empty() || sizes[0] <= shape.batch, "batch_sizes must not exceed the ",
               shape.batch, " rows of h_0, got ", sizes[0]);
    shape.steps = layer.steps = static_cast<int64_t>(sizes.size());
    check_sizes(shape);
    layer.layout = packed_layout(std::move(sizes));
    layer.sequence_rows = layer.layout.data_rows();
    LSTM_CHECK(layer.sequence_rows == input.size(0), "batch_sizes must add up to ", input.size(0),
               " rows of input, got ", layer.sequence_rows);
  } else {
    read_steps(input, layer);
    check_sizes(shape);
    // However many steps no rows have, there is nothing to go through.
    if (shape.batch == 0) shape.steps = 0;
    if (lengths) {
      const std::vector<int64_t> values = read_integers(*lengths, "lengths");
      LSTM_CHECK(static_cast<int64_t>(values.size()) == shape.batch, "lengths must have shape (",
                 shape.batch, ",), got (", values.size(), ",)");
      layer.layout = padded_layout(shape.steps, values);
    } else {
      layer.layout = dense_layout(shape.steps, shape.batch);
    }
    layer.sequence_rows = shape.steps * shape.batch;
  }
}

}  // namespace

ScalarType accumulator_type(const Layer& layer) {
  return layer.dtype == DType::kFloat64 ? ScalarType::Double : ScalarType::Float;
}

Tensor checked(const Tensor& tensor, const char* name, const Sizes& sizes, const Layer& layer) {
  check_place(tensor, name, sizes, layer);
  const ScalarType dtype = layer.input.scalar_type();
  LSTM_CHECK(tensor.scalar_type() == dtype, name, " must have input's dtype, ", dtype_text(dtype),
             ", got ", dtype_text(tensor.scalar_type()));
  return to_contiguous(tensor, name);
}

Tensor checked_cells(const Tensor& cells, const Sizes& sizes, const Layer& layer) {
  check_place(cells, "cells", sizes, layer);
  const ScalarType dtype = accumulator_type(layer);
  LSTM_CHECK(cells.scalar_type() == dtype, "cells must be ", dtype_text(dtype), ", got ",
             dtype_text(cells.scalar_type()));
  return to_contiguous(cells, "cells");
}

CpuLayer make_cpu_layer(const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                        const std::vector<Tensor>& weights, const std::optional<Tensor>& lengths,
                        const std::optional<Tensor>& batch_sizes,
                        const std::optional<Tensor>& reset_mask) {
  LSTM_CHECK(input.is_cpu(), "input must be on the CPU for a CPU op");
  CpuLayer layer;
  layer.packed = batch_sizes.has_value();
  read_shape(input, h_0, c_0, weights, layer);
  lay_out(input, lengths, batch_sizes, reset_mask, layer);
  check_tensors(input, h_0, c_0, weights, reset_mask, layer);
  return layer;
}

CpuLayer make_unweighted_layer(const Tensor& input, int64_t batch, int64_t hidden_size,
                               int64_t output_size, int64_t directions,
                               const std::optional<Tensor>& lengths,
                               const std::optional<Tensor>& batch_sizes,
                               const std::optional<Tensor>& reset_mask) {
  LSTM_CHECK(input.is_cpu(), "input must be on the CPU for a CPU op");
  CpuLayer layer;
  layer.packed = batch_sizes.has_value();
  read_input(input, layer);
  LSTM_CHECK(directions == 1 || directions == 2, "directions must be 1 or 2, got ", directions);
  LstmShape& shape = layer.shape;
  shape.directions = static_cast<int>(directions);
  shape.batch = batch;
  shape.hidden_size = hidden_size;
  shape.output_size = output_size;
  shape.projection = output_size != hidden_size;
  lay_out(input, lengths, batch_sizes, reset_mask, layer);
  layer.input = to_contiguous(input, "input");
  check_mask(reset_mask, layer);
  return layer;
}

CpuStack make_cpu_stack(const Tensor& input, const std::vector<Tensor>& weights, int64_t directions,
                        int64_t num_layers) {
  const int64_t count = static_cast<int64_t>(weights.size()), each = count / num_layers;
  LSTM_CHECK(each * num_layers == count && each >= 2,
             "weights must hold as many tensors for each of ", num_layers, " layers, got ", count);
  LSTM_CHECK(weights[1].dim() == 2, "weights must begin with w_ih and w_hh");
  CpuStack stack;
  CpuLayer& first = stack.first;
  first = make_unweighted_layer(input, input.size(1), weights[1].size(0) / kGates,
                                weights[1].size(1), directions, {}, {}, {});
  first.shape.projection = has_projection(each, directions);
  first.weights.reserve(weights.size());
  stack.shapes.assign(num_layers, first.shape);
  for (int64_t l = 0; l < num_layers; ++l) {
    LstmShape& shape = stack.shapes[l];
    if (l > 0) shape.input_size = directions * shape.output_size;
    check_shape(shape);
    append_weights(weights.data() + l * each, each, shape, first);
  }
  return stack;
}

LstmWeights CpuStack::direction_weights(int64_t layer, int direction) const {
  const int64_t blocks = static_cast<int64_t>(shapes.size()) * first.shape.directions;
  const int64_t each = static_cast<int64_t>(first.weights.size()) / blocks;
  const int64_t block = layer * first.shape.directions + direction;
  return weight_pointers(first.weights.data() + block * each, each, first.shape.projection);
}

CpuLayer make_cell_layer(const Tensor& input, const Tensor& h, const Tensor& c,
                         const std::vector<Tensor>& weights) {
  LSTM_CHECK(input.is_cpu(), "input must be on the CPU for a CPU op");
  LSTM_CHECK(input.dim() == 2, "input must have 2 dimensions, got ", input.dim());
  LSTM_CHECK(h.dim() == 2, "h must have 2 dimensions, got ", h.dim());
  LSTM_CHECK(weights.size() == 2 || weights.size() == 4, "weights must hold 2 or 4 tensors, got ",
             weights.size());
  CpuLayer layer;
  layer.dtype = to_dtype(input.scalar_type());
  layer.device = device_of(input);
  const int64_t batch = input.size(0), hidden = h.size(1);
  layer.steps = 1;
  layer.shape = {1, batch, input.size(1), hidden, hidden, 1, false};
  check_shape(layer.shape);
  LSTM_CHECK(layer.shape.input_size >= 1, "input must have at least 1 feature, got ",
             layer.shape.input_size);
  layer.layout = dense_layout(1, batch);
  layer.sequence_rows = batch;
  layer.input = to_contiguous(input, "input");
  layer.h_0 = checked(h, "h", {batch, hidden}, layer);
  layer.c_0 = checked(c, "c", {batch, hidden}, layer);
  check_weights(weights, layer);
  return layer;
}

CudaLayer make_cuda_layer(const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                          const std::vector<Tensor>& weights, const std::optional<Tensor>& lengths,
                          const std::optional<Tensor>& batch_sizes,
                          const std::optional<Tensor>& reset_mask) {
  LSTM_CHECK(!batch_sizes,
             "the CUDA kernels take padded sequences with lengths, got batch_sizes; "
             "lstm_fused.functional.lstm pads them");
  CudaLayer layer;
  read_shape(input, h_0, c_0, weights, layer);
  read_steps(input, layer);
  const LstmShape& shape = layer.shape;
  check_sizes(shape);
  if (lengths) {
    const Sizes sizes = {shape.batch};
    LSTM_CHECK(sizes.equals(*lengths), "lengths must have shape ", sizes.text(), ", got ",
               shape_text(*lengths));
    check_device(*lengths, "lengths", layer);
    check_integers(*lengths, "lengths");
    layer.lengths = to_contiguous(*lengths, "lengths");
    if (lengths->scalar_type() == ScalarType::Int) {
      layer.lengths = converted(*layer.lengths, ScalarType::Long);
    }
  }
  layer.sequence_rows = shape.steps * shape.batch;
  check_tensors(input, h_0, c_0, weights, reset_mask, layer);
  return layer;
}

LstmWeights Layer::direction_weights(int direction) const {
  const int each = weights_per_direction();
  return weight_pointers(weights.data() + direction * each, each, shape.projection);
}

const int64_t* CudaLayer::lengths_pointer() const {
  return lengths ? static_cast<const int64_t*>(lengths->const_data_ptr()) : nullptr;
}

const uint8_t* Layer::reset_flags() const {
  return reset_mask ? static_cast<const uint8_t*>(reset_mask->const_data_ptr()) : nullptr;
}

}  // namespace lstm_fused
