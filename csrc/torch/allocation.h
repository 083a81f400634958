// SPDX-License-Identifier: BSD-3-Clause
// Allocations of torch that fail, in torch's own words and types.
#pragma once

#include "torch/tensors.h"

namespace lstm_fused {

// Asks torch, in another way than the stable ABI, which keeps the cause to itself, for such a
// tensor: throws what torch throws, or returns where the memory is there by now.
using AskTorch = void (*)(const Sizes& sizes, ScalarType dtype, const Device& device);

// For programs that hold Python, whose torch has types for its errors. Without it, the error is a
// std::runtime_error in torch's words.
void set_ask_torch(AskTorch ask);

}  // namespace lstm_fused
