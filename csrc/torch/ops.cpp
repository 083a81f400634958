// SPDX-License-Identifier: BSD-3-Clause
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include "torch/registration.h"
#include "torch/schemas.h"

namespace lstm_fused {
namespace {

constexpr const char* kSchemas[] = {kLstmForwardSchema,       kLstmInferenceSchema,
                                    kLstmBackwardSchema,      kLstmSampleGradientsSchema,
                                    kLstmGateGradientsSchema, kLstmCellSchema,
                                    kLstmCellBackwardSchema};

// NOTE: not STABLE_TORCH_LIBRARY, which crashes where torch refuses the name.
class Registration {
 public:
  Registration() { complete_ = define() && implement(); }
  ~Registration() {
    if (kernels_) aoti_torch_delete_library_object(kernels_);
    if (definitions_) aoti_torch_delete_library_object(definitions_);
  }
  Registration(const Registration&) = delete;

  bool complete() const { return complete_; }

 private:
  bool define() {
    TorchLibraryHandle library = nullptr;
    if (aoti_torch_library_init_def("lstm_fused", __FILE__, __LINE__, &library) !=
        AOTI_TORCH_SUCCESS) {
      return false;
    }
    definitions_ = library;
    for (const char* schema : kSchemas) {
      if (aoti_torch_library_def(library, schema) != AOTI_TORCH_SUCCESS) return false;
    }
    return true;
  }
  bool implement() {
    TorchLibraryHandle library = nullptr;
    if (aoti_torch_library_init_impl("lstm_fused", "CPU", __FILE__, __LINE__, &library) !=
        AOTI_TORCH_SUCCESS) {
      return false;
    }
    kernels_ = library;
    for (const Kernel* kernel = kCpuKernels; kernel->name; ++kernel) {
      if (torch_library_impl(library, kernel->name, kernel->run, TORCH_ABI_VERSION) !=
          AOTI_TORCH_SUCCESS) {
        return false;
      }
    }
    return true;
  }

  TorchLibraryHandle definitions_ = nullptr, kernels_ = nullptr;
  bool complete_ = false;
};

}  // namespace

bool register_ops() {
  static const Registration registration;
  return registration.complete();
}

}  // namespace lstm_fused
