// SPDX-License-Identifier: BSD-3-Clause
#include "torch/options.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/error.h"

namespace lstm_fused {
namespace {

const void* slice(const std::optional<Tensor>& tensor, int64_t offset, int64_t size) {
  return tensor ? const_element(*tensor, offset, size) : nullptr;
}

void check_probability(double value, const char* name) {
  LSTM_CHECK(value >= 0 && value <= 1, name, " must be from 0 to 1, got ", value);
}

std::optional<Tensor> checked_option(const std::optional<Tensor>& tensor, const char* name,
                                     const Sizes& sizes, const Layer& layer) {
  if (!tensor) return {};
  return checked(*tensor, name, sizes, layer);
}

std::optional<Tensor> checked_flags(const std::optional<Tensor>& tensor, const char* name,
                                    const Layer& layer) {
  if (!tensor) return {};
  LSTM_CHECK(tensor->scalar_type() == ScalarType::Bool, name, " must be bool, got ",
             dtype_text(tensor->scalar_type()));
  const Sizes sizes = {layer.shape.directions, layer.sequence_rows, layer.shape.hidden_size};
  LSTM_CHECK(sizes.equals(*tensor), name, " must have shape ", sizes.text(), ", got ",
             Sizes(*tensor).text());
  const Device device = device_of(*tensor);
  LSTM_CHECK(device == layer.device, name, " must be on ", layer.device.text(),
             ", as input is, got ", device.text());
  return to_contiguous(*tensor, name);
}

Sizes normalised_sizes(const Layer& layer) {
  return {layer.shape.directions, layer.sequence_rows, kNorms * kGates * layer.shape.hidden_size};
}
Sizes scales_sizes(const Layer& layer) {
  return {layer.shape.directions, layer.sequence_rows, kNorms};
}

Tensor new_gradient(const Layer& layer, const std::optional<Tensor>& of, bool wanted) {
  return new_tensor(of && wanted ? Sizes(*of) : Sizes{0}, layer.input.scalar_type(), layer.device);
}

}  // namespace

CellOptionInputs OptionTensors::direction(const Layer& layer, int direction) const {
  const LstmShape& s = layer.shape;
  const int64_t d = direction, storage = dtype_size(layer.dtype);
  const auto flags = [&](const std::optional<Tensor>& keep) {
    return static_cast<const uint8_t*>(slice(keep, d * layer.sequence_rows * s.hidden_size, 1));
  };
  CellOptionInputs out;
  out.peephole = slice(peephole, d * kPeepholes * s.hidden_size, storage);
  out.h_mask = slice(h_mask, d * s.batch * s.output_size, storage);
  out.keep_c = flags(keep_c);
  out.keep_h = flags(keep_h);
  out.reset_h = slice(reset_h, d * s.batch * s.output_size, storage);
  out.reset_c = slice(reset_c, d * s.batch * s.hidden_size, storage);
  out.gains = slice(gains, d * kNorms * kGates * s.hidden_size, storage);
  out.cell_norm = slice(cell_norm, d * 2 * s.hidden_size, storage);
  return out;
}

OptionTensors check_options(const Layer& layer, const std::optional<Tensor>& peephole,
                            const std::optional<Tensor>& h_mask,
                            const std::optional<Tensor>& keep_c,
                            const std::optional<Tensor>& keep_h,
                            const std::optional<Tensor>& reset_h,
                            const std::optional<Tensor>& reset_c,
                            const std::optional<Tensor>& gains,
                            const std::optional<Tensor>& cell_norm, const CellOptions& options) {
  const LstmShape& s = layer.shape;
  OptionTensors out;
  out.options = options;
  if (options.cell_clip > 0) {
    // NOTE: what is less is 0 to the kernels, which is no limit.
    const double least = layer.dtype == DType::kFloat64 ? std::numeric_limits<double>::min()
                                                        : std::numeric_limits<float>::min();
    out.options.cell_clip = std::max(options.cell_clip, least);
  }
  LSTM_CHECK(options.cell_clip >= 0 && std::isfinite(options.cell_clip),
             "cell_clip must be a finite number of at least 0, got ", options.cell_clip);
  check_probability(options.zoneout_c, "zoneout_c");
  check_probability(options.zoneout_h, "zoneout_h");
  LSTM_CHECK(!s.projection || (!keep_h && options.zoneout_h == 0),
             "zoneout of h is not defined with an output projection");
  LSTM_CHECK(reset_h.has_value() == reset_c.has_value() && (!reset_h || layer.reset_mask),
             "reset_h and reset_c go together, with reset_mask");
  const Sizes h = {s.directions, s.batch, s.output_size};
  out.peephole =
      checked_option(peephole, "peephole", {s.directions, kPeepholes, s.hidden_size}, layer);
  out.h_mask = checked_option(h_mask, "h_mask", h, layer);
  out.keep_c = checked_flags(keep_c, "keep_c", layer);
  out.keep_h = checked_flags(keep_h, "keep_h", layer);
  out.reset_h = checked_option(reset_h, "reset_h", h, layer);
  out.reset_c = checked_option(reset_c, "reset_c", {s.directions, s.batch, s.hidden_size}, layer);
  LSTM_CHECK(gains.has_value() == cell_norm.has_value(), "gains and cell_norm go together");
  out.gains = checked_option(gains, "gains", {s.directions, kNorms, kGates * s.hidden_size}, layer);
  out.cell_norm = checked_option(cell_norm, "cell_norm", {s.directions, 2, s.hidden_size}, layer);
  return out;
}

SavedNorms NormTensors::direction(const Layer& layer, int d) const {
  const int64_t row = d * layer.sequence_rows;
  return {
      element(normalised, row * kNorms * kGates * layer.shape.hidden_size, dtype_size(layer.dtype)),
      element(scales, row * kNorms, accumulator_size(layer.dtype))};
}

NormTensors new_norms(const Layer& layer, bool wanted) {
  return {
      new_tensor(wanted ? normalised_sizes(layer) : Sizes{0}, layer.input.scalar_type(),
                 layer.device),
      new_tensor(wanted ? scales_sizes(layer) : Sizes{0}, accumulator_type(layer), layer.device)};
}

NormTensors check_norms(const Layer& layer, const OptionTensors& options, const Tensor& normalised,
                        const Tensor& scales) {
  if (options.gains) {
    checked(normalised, "normalised", normalised_sizes(layer), layer);
    const Sizes sizes = scales_sizes(layer);
    LSTM_CHECK(sizes.equals(scales), "scales must have shape ", sizes.text(), ", got ",
               Sizes(scales).text());
    LSTM_CHECK(scales.scalar_type() == accumulator_type(layer), "scales must be ",
               dtype_text(accumulator_type(layer)), ", got ", dtype_text(scales.scalar_type()));
    const Device device = device_of(scales);
    LSTM_CHECK(device == layer.device, "scales must be on ", layer.device.text(),
               ", as input is, got ", device.text());
  }
  return {to_contiguous(normalised, "normalised"), to_contiguous(scales, "scales")};
}

OptionGradients::OptionGradients(const Layer& layer, const OptionTensors& options, bool wanted)
    : peephole(new_gradient(layer, options.peephole, wanted)),
      reset_h(new_gradient(layer, options.reset_h, wanted)),
      reset_c(new_gradient(layer, options.reset_c, wanted)),
      gains(new_gradient(layer, options.gains, wanted)),
      cell_norm(new_gradient(layer, options.cell_norm, wanted)) {}

CellOptionGradients OptionGradients::direction(const Layer& layer, int direction) const {
  const LstmShape& s = layer.shape;
  const int64_t d = direction, storage = dtype_size(layer.dtype);
  CellOptionGradients out;
  out.peephole = element(peephole, d * kPeepholes * s.hidden_size, storage);
  out.reset_h = element(reset_h, d * s.batch * s.output_size, storage);
  out.reset_c = element(reset_c, d * s.batch * s.hidden_size, storage);
  out.gains = element(gains, d * kNorms * kGates * s.hidden_size, storage);
  out.cell_norm = element(cell_norm, d * 2 * s.hidden_size, storage);
  return out;
}

OptionBackwardResult OptionGradients::result(const BackwardResult& others) const {
  return std::tuple_cat(others, std::make_tuple(peephole, reset_h, reset_c, gains, cell_norm));
}

void check_saved_gates(const BackwardTensors& tensors) {
  LSTM_CHECK(tensors.gates.dim() == 3, "gates must have 3 dimensions with options, got ",
             tensors.gates.dim());
}

}  // namespace lstm_fused
