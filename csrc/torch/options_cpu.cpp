// SPDX-License-Identifier: BSD-3-Clause
#include "torch/options_cpu.h"

#include <cmath>

#include "common/error.h"
#include "cpu/lstm_forward.h"
#include "torch/layer_cpu.h"
#include "torch/torch_parallel.h"

namespace lstm_fused {
namespace {

// The tensors of a cell's options, checked and contiguous.
struct OptionTensors {
  CellOptions options;
  std::optional<Tensor> peephole;        // (L, 3, H)
  std::optional<Tensor> h_mask;          // (L, N, P)
  std::optional<Tensor> keep_c, keep_h;  // (L, rows of input, H) bool
  std::optional<Tensor> reset_h;         // (L, N, P)
  std::optional<Tensor> reset_c;         // (L, N, H)
  std::optional<Tensor> gains;           // (L, 2, 4H)
  std::optional<Tensor> cell_norm;       // (L, 2, H)

  CellOptionInputs direction(const CpuLayer& layer, int d) const;
};

const void* slice(const std::optional<Tensor>& tensor, int64_t offset, int64_t size) {
  return tensor ? const_element(*tensor, offset, size) : nullptr;
}

CellOptionInputs OptionTensors::direction(const CpuLayer& layer, int d) const {
  const LstmShape& s = layer.shape;
  const int64_t storage = dtype_size(layer.dtype);
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

void check_probability(double value, const char* name) {
  LSTM_CHECK(value >= 0 && value <= 1, name, " must be from 0 to 1, got ", value);
}

std::optional<Tensor> checked_option(const std::optional<Tensor>& tensor, const char* name,
                                     const Sizes& sizes, const Layer& layer) {
  if (!tensor) return {};
  return checked(*tensor, name, sizes, layer);
}

std::optional<Tensor> checked_flags(const std::optional<Tensor>& tensor, const char* name,
                                    const CpuLayer& layer) {
  if (!tensor) return {};
  LSTM_CHECK(tensor->scalar_type() == ScalarType::Bool, name, " must be bool, got ",
             dtype_text(tensor->scalar_type()));
  const Sizes sizes = {layer.shape.directions, layer.sequence_rows, layer.shape.hidden_size};
  LSTM_CHECK(sizes.equals(*tensor), name, " must have shape ", sizes.text(), ", got ",
             Sizes(*tensor).text());
  LSTM_CHECK(tensor->is_cpu(), name, " must be on the CPU, as input is, got ",
             device_of(*tensor).text());
  return to_contiguous(*tensor, name);
}

OptionTensors check_options(const CpuLayer& layer, const std::optional<Tensor>& peephole,
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

Sizes normalised_sizes(const Layer& layer) {
  return {layer.shape.directions, layer.sequence_rows, kNorms * kGates * layer.shape.hidden_size};
}
Sizes scales_sizes(const Layer& layer) {
  return {layer.shape.directions, layer.sequence_rows, kNorms};
}

SavedNorms saved_norms(const Layer& layer, const Tensor& normalised, const Tensor& scales, int d) {
  const int64_t row = d * layer.sequence_rows;
  return {
      element(normalised, row * kNorms * kGates * layer.shape.hidden_size, dtype_size(layer.dtype)),
      element(scales, row * kNorms, accumulator_size(layer.dtype))};
}

}  // namespace

OptionForwardResult lstm_options_forward_cpu(
    const Tensor& input, const Tensor& h_0, const Tensor& c_0, const std::vector<Tensor>& weights,
    const std::optional<Tensor>& lengths, const std::optional<Tensor>& batch_sizes,
    const std::optional<Tensor>& reset_mask, const std::optional<Tensor>& peephole,
    const std::optional<Tensor>& h_mask, const std::optional<Tensor>& keep_c,
    const std::optional<Tensor>& keep_h, const std::optional<Tensor>& reset_h,
    const std::optional<Tensor>& reset_c, const std::optional<Tensor>& gains,
    const std::optional<Tensor>& cell_norm, bool coupled_gates, double cell_clip, double zoneout_c,
    double zoneout_h, bool save_for_backward, bool return_cell_states, bool recompute) {
  const CpuLayer layer = make_cpu_layer(input, h_0, c_0, weights, lengths, batch_sizes, reset_mask);
  const OptionTensors options =
      check_options(layer, peephole, h_mask, keep_c, keep_h, reset_h, reset_c, gains, cell_norm,
                    {coupled_gates, cell_clip, zoneout_c, zoneout_h});
  const ForwardTensors tensors(layer, save_for_backward, save_for_backward && !recompute,
                               return_cell_states);
  LstmForwardArgs args = forward_args(layer, tensors);
  args.options = &options.options;
  const bool saves_norms = options.gains && save_for_backward && !recompute;
  const Tensor normalised = new_tensor(saves_norms ? normalised_sizes(layer) : Sizes{0},
                                       input.scalar_type(), layer.device);
  const Tensor scales = new_tensor(saves_norms ? scales_sizes(layer) : Sizes{0},
                                   accumulator_type(layer), layer.device);
  for (int d = 0; d < layer.shape.directions; ++d) {
    args.direction[d].options = options.direction(layer, d);
    args.direction[d].norms = saved_norms(layer, normalised, scales, d);
  }
  const cpu::Parallel parallel = torch_parallel();
  const cpu::CpuFacts facts = cpu::cpu_facts(parallel.threads);
  const cpu::CellKind cell = options.gains ? cpu::CellKind::kNorms : cpu::CellKind::kOptions;
  cpu::lstm_forward(args, cpu::make_forward_plan(layer.shape, layer.dtype, facts, cell), parallel);
  return std::tuple_cat(tensors.result(), std::make_tuple(normalised, scales));
}

OptionBackwardResult lstm_options_backward_cpu(
    const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_h_n,
    const std::optional<Tensor>& grad_c_n, const std::optional<Tensor>& grad_cell_states,
    const Tensor& input, const Tensor& h_0, const Tensor& c_0, const std::vector<Tensor>& weights,
    const std::optional<Tensor>& lengths, const std::optional<Tensor>& batch_sizes,
    const std::optional<Tensor>& reset_mask, const std::optional<Tensor>& peephole,
    const std::optional<Tensor>& h_mask, const std::optional<Tensor>& keep_c,
    const std::optional<Tensor>& keep_h, const std::optional<Tensor>& reset_h,
    const std::optional<Tensor>& reset_c, const std::optional<Tensor>& gains,
    const std::optional<Tensor>& cell_norm, bool coupled_gates, double cell_clip, double zoneout_c,
    double zoneout_h, const Tensor& y, const Tensor& gates, const Tensor& cells,
    const Tensor& normalised, const Tensor& scales, bool need_input, bool need_states,
    bool need_weights, bool need_options) {
  const CpuLayer layer = make_cpu_layer(input, h_0, c_0, weights, lengths, batch_sizes, reset_mask);
  const OptionTensors options =
      check_options(layer, peephole, h_mask, keep_c, keep_h, reset_h, reset_c, gains, cell_norm,
                    {coupled_gates, cell_clip, zoneout_c, zoneout_h});
  const BackwardTensors tensors(layer, grad_y, grad_h_n, grad_c_n, grad_cell_states, y, gates,
                                cells, {need_input, need_states, need_weights, {}});
  LSTM_CHECK(tensors.gates.dim() == 3, "gates must have 3 dimensions with options, got ",
             tensors.gates.dim());

  if (options.gains) {
    checked(normalised, "normalised", normalised_sizes(layer), layer);
    const Sizes sizes = scales_sizes(layer);
    LSTM_CHECK(sizes.equals(scales), "scales must have shape ", sizes.text(), ", got ",
               Sizes(scales).text());
    LSTM_CHECK(scales.scalar_type() == accumulator_type(layer), "scales must be ",
               dtype_text(accumulator_type(layer)), ", got ", dtype_text(scales.scalar_type()));
  }
  const Tensor normal_rows = to_contiguous(normalised, "normalised");
  const Tensor scale_rows = to_contiguous(scales, "scales");

  const LstmShape& s = layer.shape;
  const int64_t storage = dtype_size(layer.dtype);
  const auto new_gradient = [&](const std::optional<Tensor>& of) {
    return new_tensor(of && need_options ? Sizes(*of) : Sizes{0}, layer.input.scalar_type(),
                      layer.device);
  };
  const Tensor grad_peephole = new_gradient(options.peephole);
  const Tensor grad_reset_h = new_gradient(options.reset_h);
  const Tensor grad_reset_c = new_gradient(options.reset_c);
  const Tensor grad_gains = new_gradient(options.gains);
  const Tensor grad_cell_norm = new_gradient(options.cell_norm);

  cpu::LayerBackwardArgs args = backward_args(layer, tensors);
  args.options = &options.options;
  for (int d = 0; d < s.directions; ++d) {
    LstmBackwardDirection& recurrence = args.direction[d].recurrence;
    recurrence.options = options.direction(layer, d);
    recurrence.norms = saved_norms(layer, normal_rows, scale_rows, d);
    CellOptionGradients& grads = recurrence.grad_options;
    grads.peephole = element(grad_peephole, int64_t{d} * kPeepholes * s.hidden_size, storage);
    grads.reset_h = element(grad_reset_h, int64_t{d} * s.batch * s.output_size, storage);
    grads.reset_c = element(grad_reset_c, int64_t{d} * s.batch * s.hidden_size, storage);
    grads.gains = element(grad_gains, int64_t{d} * kNorms * kGates * s.hidden_size, storage);
    grads.cell_norm = element(grad_cell_norm, int64_t{d} * 2 * s.hidden_size, storage);
  }
  const cpu::Parallel parallel = torch_parallel();
  cpu::layer_backward(args,
                      cpu::make_layer_backward_plan(s, layer.layout.data_rows(), layer.dtype,
                                                    cpu::cpu_facts(parallel.threads)),
                      parallel);
  return {tensors.grad_input,   tensors.grad_h_0, tensors.grad_c_0,
          tensors.grad_weights, grad_peephole,    grad_reset_h,
          grad_reset_c,         grad_gains,       grad_cell_norm};
}

}  // namespace lstm_fused
