// SPDX-License-Identifier: BSD-3-Clause
// The ops on packed weights (cpu/quantized/packed_weights.h), which a tensor of bytes holds.
#pragma once

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "torch/tensors.h"

namespace lstm_fused {

using QuantizedResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using QuantizedCellResult = std::tuple<Tensor, Tensor>;

Tensor lstm_pack_cpu(const std::vector<Tensor>& weights, std::string type,
                     const std::optional<Tensor>& w_ih_scales,
                     const std::optional<Tensor>& w_hh_scales);
std::vector<Tensor> lstm_unpack_cpu(const Tensor& packed);
QuantizedResult lstm_quantized_cpu(
    const Tensor& input, const std::optional<Tensor>& h_0, const std::optional<Tensor>& c_0,
    const std::vector<Tensor>& packed, const std::optional<Tensor>& lengths,
    const std::optional<Tensor>& batch_sizes, const std::optional<Tensor>& reset_mask,
    int64_t hidden_size, int64_t output_size, int64_t directions, bool return_cell_states);

QuantizedCellResult lstm_quantized_cell_cpu(const Tensor& input, const std::optional<Tensor>& h,
                                            const std::optional<Tensor>& c, const Tensor& packed,
                                            int64_t hidden_size);

}  // namespace lstm_fused
