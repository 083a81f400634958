// SPDX-License-Identifier: BSD-3-Clause
// lstm_fused._C_cuda: importing it registers the ops on CUDA tensors.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <map>
#include <string>

#include "cuda/availability.h"
#include "cuda/device_facts.h"
#include "cuda/first_use/check.h"
#include "cuda/persistent/wait_failure.h"
#include "cuda/plan.h"
#include "torch/python_torch.h"
#include "torch/warning.h"

namespace lstm_fused {

void warn_user(const std::string& text) {
  const pybind11::gil_scoped_acquire lock;
  const std::string sentence = "lstm_fused: " + text;
  if (PyErr_WarnEx(PyExc_RuntimeWarning, sentence.c_str(), /*stack_level=*/1) != 0) {
    throw pybind11::error_already_set();
  }
}

namespace {

std::map<std::string, int64_t> device_facts(int device) {
  const cuda::DeviceFacts facts = cuda::query_device_facts(device);
  return {{"major", facts.major},
          {"minor", facts.minor},
          {"sm_count", facts.sm_count},
          {"shared_per_sm", facts.shared_per_sm},
          {"shared_per_block", facts.shared_per_block},
          {"registers_per_sm", facts.registers_per_sm},
          {"max_threads_per_sm", facts.max_threads_per_sm},
          {"l2_bytes", facts.l2_bytes}};
}

std::map<std::string, std::string> refusals(int device) {
  return {{"cta", cuda::refusal_of(device, cuda::Variant::kPersistentCta)},
          {"group", cuda::refusal_of(device, cuda::Variant::kPersistentGroup)}};
}

}  // namespace
}  // namespace lstm_fused

PYBIND11_MODULE(_C_cuda, m) {
  lstm_fused::set_ask_torch(lstm_fused::ask_python_torch);
  m.doc() =
      "CUDA part of lstm_fused; importing it registers torch.ops.lstm_fused.* on CUDA tensors";
  m.def("device_facts", &lstm_fused::device_facts, pybind11::arg("device"),
        "What plans depend on, of the CUDA device with this index.");
  m.def("refusals", &lstm_fused::refusals, pybind11::arg("device"),
        "Why plans for the device leave out kernels of one block (\"cta\") and groups of blocks "
        "(\"group\"); empty where they do not.");
  m.def("check_wait_failures", &lstm_fused::cuda::check_wait_failures, pybind11::arg("device"),
        "Raises RuntimeError where blocks of an earlier launch on the device have stopped waiting "
        "for each other. Waits for nothing itself.");
  m.def(
      "set_cuda_variant", &lstm_fused::cuda::set_variant, pybind11::arg("name"),
      "Puts \"auto\", \"stepwise\" or \"persistent\" in the place of LSTM_FUSED_CUDA_VARIANT, for "
      "the ops; gives the one before.");
  m.def("set_first_use_checks", &lstm_fused::cuda::set_first_use_checks, pybind11::arg("value"),
        "Puts \"1\" or \"0\" in the place of LSTM_FUSED_CUDA_CHECK; gives the one before.");
  m.def(
      "architectures", [] { return std::string(LSTM_CUDA_ARCHITECTURES); },
      "What the kernels were compiled for, as nvcc names it, separated by spaces.");
  m.def(
      "cuda_version", [] { return CUDART_VERSION; },
      "The CUDA toolkit that compiled them: 1000 major + 10 minor.");
}
