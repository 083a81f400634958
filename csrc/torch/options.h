// SPDX-License-Identifier: BSD-3-Clause
// The tensors of a cell's options, on either device, and the core's view of one direction of them.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "common/lstm.h"
#include "torch/call.h"
#include "torch/layer.h"

namespace lstm_fused {

// What the ops return, in the order of schemas.h.
using OptionForwardResult =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using OptionBackwardResult =
    std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Checked and contiguous.
struct OptionTensors {
  CellOptions options;
  std::optional<Tensor> peephole;        // (L, 3, H)
  std::optional<Tensor> h_mask;          // (L, N, P)
  std::optional<Tensor> keep_c, keep_h;  // (L, rows of input, H) bool
  std::optional<Tensor> reset_h;         // (L, N, P)
  std::optional<Tensor> reset_c;         // (L, N, H)
  std::optional<Tensor> gains;           // (L, 2, 4H)
  std::optional<Tensor> cell_norm;       // (L, 2, H)

  CellOptionInputs direction(const Layer& layer, int d) const;
};

// Throws Error where they do not fit together, or the layer.
OptionTensors check_options(const Layer& layer, const std::optional<Tensor>& peephole,
                            const std::optional<Tensor>& h_mask,
                            const std::optional<Tensor>& keep_c,
                            const std::optional<Tensor>& keep_h,
                            const std::optional<Tensor>& reset_h,
                            const std::optional<Tensor>& reset_c,
                            const std::optional<Tensor>& gains,
                            const std::optional<Tensor>& cell_norm, const CellOptions& options);

// What a forward with norms saves for the backward: normalised (L, rows, 8H) and scales (L, rows,
// 2).
struct NormTensors {
  Tensor normalised, scales;

  SavedNorms direction(const Layer& layer, int d) const;
};
// Not initialised, and empty unless wanted.
NormTensors new_norms(const Layer& layer, bool wanted);
// Those that a forward has saved, contiguous. Throws Error where there are norms, and these do not
// fit.
NormTensors check_norms(const Layer& layer, const OptionTensors& options, const Tensor& normalised,
                        const Tensor& scales);

// The options' gradients, not initialised; empty of what was not given, or unless wanted.
struct OptionGradients {
  Tensor peephole, reset_h, reset_c, gains, cell_norm;

  OptionGradients(const Layer& layer, const OptionTensors& options, bool wanted);
  CellOptionGradients direction(const Layer& layer, int d) const;
  OptionBackwardResult result(const BackwardResult& others) const;
};

// The gates must have been saved.
void check_saved_gates(const BackwardTensors& tensors);

}  // namespace lstm_fused
