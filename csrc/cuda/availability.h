// SPDX-License-Identifier: BSD-3-Clause
// Which persistent variants plans may take on a device. All at first; what has failed there is left
// out from then on, for as long as the process lives.
#pragma once

#include <string>

#include "cuda/plan.h"

namespace lstm_fused::cuda {

// What is remembered of devices has room for so many, numbered from 0 as by the CUDA runtime.
constexpr int kMaxDevices = 64;
// Throws Error for a device beyond them.
void check_device(int device);

// Why plans must not take the variant on the device; empty: they may. Takes no lock.
std::string refusal_of(int device, Variant variant);

// Leaves the variant out. False where it was already, for the reason that was given first.
bool refuse_variant(int device, Variant variant, const std::string& why);

// Allows all variants again. For tests.
void allow_all_variants(int device);

}  // namespace lstm_fused::cuda
