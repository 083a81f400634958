// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <pybind11/pybind11.h>

namespace lstm_fused {

// Defines lstm_fused._C.Stream.
void define_stream(pybind11::module_& m);

}  // namespace lstm_fused
