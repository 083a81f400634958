// SPDX-License-Identifier: BSD-3-Clause
#include "torch/quantized_cpu.h"

#include "common/error.h"
#include "cpu/quantized/forward.h"
#include "torch/layer.h"
#include "torch/torch_parallel.h"

namespace lstm_fused {
namespace {

namespace quantized = cpu::quantized;

constexpr int64_t kFloat = sizeof(float);

const float* floats_of(const Tensor& tensor) {
  return static_cast<const float*>(const_element(tensor, 0, 1));
}

Tensor new_floats(const Sizes& sizes) { return new_tensor(sizes, ScalarType::Float, Device()); }

// A contiguous float32 tensor on the CPU with the given sizes; else throws.
Tensor checked_floats(const Tensor& tensor, const char* name, const Sizes& sizes) {
  LSTM_CHECK(sizes.equals(tensor), name, " must have shape ", sizes.text(), ", got ",
             Sizes(tensor).text());
  LSTM_CHECK(tensor.is_cpu(), name, " must be on the CPU, got ", device_of(tensor).text());
  LSTM_CHECK(tensor.scalar_type() == ScalarType::Float, name, " must be torch.float32, got ",
             dtype_text(tensor.scalar_type()));
  return to_contiguous(tensor, name);
}

Tensor checked_block(const Tensor& packed) {
  LSTM_CHECK(packed.dim() == 1 && packed.is_cpu() && packed.scalar_type() == ScalarType::Byte,
             "packed weights must be a torch.uint8 tensor of 1 dimension on the CPU, got ",
             dtype_text(packed.scalar_type()), " of ", packed.dim(), " dimensions on ",
             device_of(packed).text());
  return to_contiguous(packed, "packed weights");
}

quantized::PackedLayer read_block(const Tensor& block) {
  return quantized::read_layer(const_element(block, 0, 1), block.numel());
}

// A state of all layers and directions, or an absent one.
std::optional<Tensor> checked_state(const std::optional<Tensor>& state, const char* name,
                                    const Sizes& sizes) {
  if (!state) return {};
  return checked_floats(*state, name, sizes);
}

}  // namespace

Tensor lstm_pack_cpu(const std::vector<Tensor>& weights, std::string type,
                     const std::optional<Tensor>& w_ih_scales,
                     const std::optional<Tensor>& w_hh_scales) {
  const size_t count = weights.size();
  LSTM_CHECK(count >= 2 && count <= 5, "weights must hold 2 to 5 tensors, got ", count);
  const bool projection = count == 3 || count == 5;
  LSTM_CHECK(weights[0].dim() == 2 && weights[1].dim() == 2 && weights[0].size(0) % kGates == 0,
             "weights must begin with w_ih and w_hh");
  quantized::PackSource source;
  source.type = quantized::parse_weight_type(type);
  source.input_size = weights[0].size(1);
  source.hidden_size = weights[0].size(0) / kGates;
  source.output_size = weights[1].size(1);
  const int64_t rows = kGates * source.hidden_size;
  LSTM_CHECK(projection || source.output_size == source.hidden_size,
             "w_hh must have hidden_size = ", source.hidden_size,
             " columns without projection, got ", source.output_size);

  std::vector<Tensor> kept;
  kept.push_back(checked_floats(weights[0], "w_ih", {rows, source.input_size}));
  kept.push_back(checked_floats(weights[1], "w_hh", {rows, source.output_size}));
  source.weights.w_ih = floats_of(kept[0]);
  source.weights.w_hh = floats_of(kept[1]);
  if (count >= 4) {
    kept.push_back(checked_floats(weights[2], "b_ih", {rows}));
    kept.push_back(checked_floats(weights[3], "b_hh", {rows}));
    source.weights.b_ih = floats_of(kept[2]);
    source.weights.b_hh = floats_of(kept[3]);
  }
  if (projection) {
    kept.push_back(
        checked_floats(weights[count - 1], "w_hr", {source.output_size, source.hidden_size}));
    source.weights.w_hr = floats_of(kept.back());
  }
  if (w_ih_scales) {
    kept.push_back(checked_floats(*w_ih_scales, "w_ih_scales", {rows}));
    source.w_ih_scales = floats_of(kept.back());
  }
  if (w_hh_scales) {
    kept.push_back(checked_floats(*w_hh_scales, "w_hh_scales", {rows}));
    source.w_hh_scales = floats_of(kept.back());
  }

  const Tensor packed = new_tensor({quantized::packed_bytes(source)}, ScalarType::Byte, Device());
  quantized::pack_layer(source, packed.mutable_data_ptr());
  return packed;
}

std::vector<Tensor> lstm_unpack_cpu(const Tensor& packed) {
  const Tensor block = checked_block(packed);
  const quantized::PackedLayer layer = read_block(block);
  const int64_t rows = kGates * layer.hidden_size;
  std::vector<Tensor> weights;
  quantized::UnpackedWeights out;
  const auto add = [&](const Sizes& sizes) {
    weights.push_back(new_floats(sizes));
    return static_cast<float*>(weights.back().mutable_data_ptr());
  };
  out.w_ih = add({rows, layer.input_size});
  out.w_hh = add({rows, layer.output_size});
  if (layer.has_bias) {
    out.b_ih = add({rows});
    out.b_hh = add({rows});
  }
  if (layer.projection) out.w_hr = add({layer.output_size, layer.hidden_size});
  quantized::unpack_layer(layer, out);
  return weights;
}

QuantizedResult lstm_quantized_cpu(
    const Tensor& input, const std::optional<Tensor>& h_0, const std::optional<Tensor>& c_0,
    const std::vector<Tensor>& packed, const std::optional<Tensor>& lengths,
    const std::optional<Tensor>& batch_sizes, const std::optional<Tensor>& reset_mask,
    int64_t hidden_size, int64_t output_size, int64_t directions, bool return_cell_states) {
  // Read the sequences.
  LSTM_CHECK(h_0 || !batch_sizes, "h_0 must be given with batch_sizes");
  LSTM_CHECK(!h_0 || h_0->dim() == 3, "h_0 must have 3 dimensions, got ", h_0->dim());
  LSTM_CHECK(h_0 || input.dim() == 3, "input must have 3 dimensions, got ", input.dim());
  const int64_t batch = h_0 ? h_0->size(1) : input.size(1);
  CpuLayer layer = make_unweighted_layer(input, batch, hidden_size, output_size, directions,
                                         lengths, batch_sizes, reset_mask);
  LSTM_CHECK(layer.dtype == DType::kFloat32,
             "input must be torch.float32 with packed weights, got ",
             dtype_text(input.scalar_type()));
  const int64_t runs = static_cast<int64_t>(packed.size());
  LSTM_CHECK(runs >= 1 && runs % directions == 0, "packed must hold a tensor for each of ",
             directions, " directions of each layer, got ", runs);
  const auto h = checked_state(h_0, "h_0", {runs, batch, output_size});
  const auto c = checked_state(c_0, "c_0", {runs, batch, hidden_size});

  // Run layer after layer, from one sequence of outputs to the next.
  const auto new_sequence = [&](int64_t features) {
    return layer.packed ? new_floats({layer.sequence_rows, features})
                        : new_floats({layer.steps, batch, features});
  };
  const Tensor h_n = new_floats({runs, batch, output_size});
  const Tensor c_n = new_floats({runs, batch, hidden_size});
  const Tensor cell_states =
      return_cell_states ? new_sequence(directions * hidden_size) : new_floats({0});
  if (return_cell_states && layer.is_ragged()) fill_with_zeros(cell_states);
  const cpu::Parallel parallel = torch_parallel();
  const cpu::CpuFacts facts = cpu::cpu_facts(parallel.threads);
  Tensor x = layer.input, y;
  for (int64_t first = 0; first < runs; first += directions) {
    const bool is_last = first + directions == runs;
    y = new_sequence(directions * output_size);
    if (is_last && layer.is_ragged()) fill_with_zeros(y);
    quantized::QuantizedForwardArgs args;
    args.shape = layer.shape;
    if (first > 0) args.shape.input_size = directions * output_size;
    args.layout = &layer.layout;
    args.x = floats_of(x);
    args.reset_mask = layer.reset_flags();
    std::vector<Tensor> blocks;
    for (int64_t d = 0; d < directions; ++d) {
      blocks.push_back(checked_block(packed[first + d]));
      quantized::QuantizedDirection& direction = args.direction[d];
      const int64_t h_at = (first + d) * batch * output_size;
      const int64_t c_at = (first + d) * batch * hidden_size;
      direction.layer = read_block(blocks.back());
      if (h) direction.h_0 = static_cast<const float*>(const_element(*h, h_at, kFloat));
      if (c) direction.c_0 = static_cast<const float*>(const_element(*c, c_at, kFloat));
      direction.y = static_cast<float*>(element(y, d * output_size, kFloat));
      direction.h_n = static_cast<float*>(element(h_n, h_at, kFloat));
      direction.c_n = static_cast<float*>(element(c_n, c_at, kFloat));
      if (is_last) {
        direction.cell_states = static_cast<float*>(element(cell_states, d * hidden_size, kFloat));
      }
    }
    const auto plan =
        quantized::make_quantized_plan(args.shape, args.direction[0].layer.type, facts);
    quantized::quantized_forward(args, plan, parallel);
    x = y;
  }
  return {y, h_n, c_n, cell_states};
}

QuantizedCellResult lstm_quantized_cell_cpu(const Tensor& input, const std::optional<Tensor>& h,
                                            const std::optional<Tensor>& c, const Tensor& packed,
                                            int64_t hidden_size) {
  LSTM_CHECK(input.dim() == 2, "input must have 2 dimensions, got ", input.dim());
  const int64_t rows = input.size(0), input_size = input.size(1);
  const Tensor x = checked_floats(input, "input", {rows, input_size});
  const Sizes sizes = {rows, hidden_size};
  const auto h_0 = checked_state(h, "h", sizes), c_0 = checked_state(c, "c", sizes);
  const Tensor block = checked_block(packed);
  const Tensor h_next = new_floats(sizes), c_next = new_floats(sizes);
  const SequenceLayout layout = dense_layout(rows == 0 ? 0 : 1, rows);
  quantized::QuantizedForwardArgs args;
  args.shape = {layout.steps(), rows, input_size, hidden_size, hidden_size, 1, false};
  args.layout = &layout;
  args.x = floats_of(x);
  quantized::QuantizedDirection& direction = args.direction[0];
  direction.layer = read_block(block);
  if (h_0) direction.h_0 = floats_of(*h_0);
  if (c_0) direction.c_0 = floats_of(*c_0);
  direction.h_n = static_cast<float*>(element(h_next, 0, 1));
  direction.c_n = static_cast<float*>(element(c_next, 0, 1));
  const cpu::Parallel parallel = torch_parallel();
  const auto plan = quantized::make_quantized_plan(args.shape, direction.layer.type,
                                                   cpu::cpu_facts(parallel.threads));
  quantized::quantized_forward(args, plan, parallel);
  return {h_next, c_next};
}

}  // namespace lstm_fused
