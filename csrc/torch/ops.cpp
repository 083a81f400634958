// SPDX-License-Identifier: BSD-3-Clause
#include "torch/registration.h"
#include "torch/schemas.h"
#include "torch/unstable_torch.h"

namespace lstm_fused {
namespace {

constexpr const char* kSchemas[] = {kLstmForwardSchema,        kLstmInferenceSchema,
                                    kLstmBackwardSchema,       kLstmSampleGradientsSchema,
                                    kLstmOptionsForwardSchema, kLstmOptionsBackwardSchema,
                                    kLstmCellSchema,           kLstmCellBackwardSchema,
                                    kLstmPackSchema,           kLstmUnpackSchema,
                                    kLstmQuantizedSchema,      kLstmQuantizedCellSchema};

class Registration {
 public:
  Registration() { complete_ = define() && implement(); }
  bool complete() const { return complete_; }

 private:
  bool define() {
    if (!definitions_.begin_definitions("lstm_fused")) return false;
    for (const char* schema : kSchemas) {
      if (!definitions_.define(schema)) return false;
    }
    return true;
  }
  bool implement() {
    if (!kernels_.begin_kernels("lstm_fused", "CPU")) return false;
    for (const Kernel* kernel = kCpuKernels; kernel->name; ++kernel) {
      if (!kernels_.implement(kernel->name, kernel->run)) return false;
    }
    return true;
  }

  // NOTE: in this order, so that torch forgets the kernels first.
  unstable::Library definitions_, kernels_;
  bool complete_ = false;
};

}  // namespace

bool register_ops() {
  static const Registration registration;
  return registration.complete();
}

}  // namespace lstm_fused
