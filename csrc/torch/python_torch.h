// SPDX-License-Identifier: BSD-3-Clause
// Asks Python's torch for a tensor, for the cause of a failed allocation: see torch/allocation.h.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "torch/allocation.h"

namespace lstm_fused {

inline void ask_python_torch(const Sizes& sizes, ScalarType dtype, const Device& device) {
  namespace py = pybind11;
  const py::gil_scoped_acquire lock;
  // An element's size is what counts.
  const char* type = dtype == ScalarType::Byte || dtype == ScalarType::Bool       ? "uint8"
                     : dtype == ScalarType::Half || dtype == ScalarType::BFloat16 ? "float16"
                     : dtype == ScalarType::Double || dtype == ScalarType::Long   ? "float64"
                                                                                  : "float32";
  py::tuple shape(sizes.dim());
  for (int64_t i = 0; i < sizes.dim(); ++i) shape[i] = py::int_(sizes.data()[i]);
  const py::module_ torch = py::module_::import("torch");
  torch.attr("empty")(shape, py::arg("dtype") = torch.attr(type),
                      py::arg("device") = device.text());
}

}  // namespace lstm_fused
