// SPDX-License-Identifier: BSD-3-Clause
// lstm_fused._C_cuda: importing it registers the ops on CUDA tensors.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <map>
#include <string>

#include "cuda/device_facts.h"
#include "cuda/plan.h"
#include "torch/python_torch.h"

namespace {

std::map<std::string, int64_t> device_facts(int device) {
  const lstm_fused::cuda::DeviceFacts facts = lstm_fused::cuda::query_device_facts(device);
  return {{"major", facts.major},
          {"minor", facts.minor},
          {"sm_count", facts.sm_count},
          {"shared_per_sm", facts.shared_per_sm},
          {"shared_per_block", facts.shared_per_block},
          {"registers_per_sm", facts.registers_per_sm},
          {"max_threads_per_sm", facts.max_threads_per_sm},
          {"l2_bytes", facts.l2_bytes}};
}

}  // namespace

PYBIND11_MODULE(_C_cuda, m) {
  lstm_fused::set_ask_torch(lstm_fused::ask_python_torch);
  m.doc() =
      "CUDA part of lstm_fused; importing it registers torch.ops.lstm_fused.* on CUDA tensors";
  m.def("device_facts", &device_facts, pybind11::arg("device"),
        "What plans depend on, of the CUDA device with this index.");
  m.def("set_cuda_variant", &lstm_fused::cuda::set_variant, pybind11::arg("name"),
        "Puts \"auto\" or \"stepwise\" in the place of LSTM_FUSED_CUDA_VARIANT, for the ops; gives "
        "the one before.");
  m.def(
      "architectures", [] { return std::string(LSTM_CUDA_ARCHITECTURES); },
      "What the kernels were compiled for, as nvcc names it, separated by spaces.");
  m.def(
      "cuda_version", [] { return CUDART_VERSION; },
      "The CUDA toolkit that compiled them: 1000 major + 10 minor.");
}
