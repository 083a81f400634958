// SPDX-License-Identifier: BSD-3-Clause
// The ops, registered with torch when a library that holds them is loaded.
#pragma once

#include <torch/csrc/stable/library.h>

namespace lstm_fused {

// Boxed kernels on CPU tensors, each for the op of that name; ends with a null name.
struct Kernel {
  const char* name;
  void (*run)(StableIValue* stack, uint64_t inputs, uint64_t outputs);
};
extern const Kernel kCpuKernels[];

// Registers all ops, and unregisters them when the library is unloaded. False, and nothing is
// registered, where torch has ops of this name already: another copy of this library's.
bool register_ops();

constexpr const char* kTakenError =
    "lstm_fused: the ops torch.ops.lstm_fused.* are registered already, by another library or "
    "another copy of lstm_fused. A process loads one of them: either `import lstm_fused`, or "
    "torch.ops.load_library(\".../liblstm_fused_ops.so\") in a program that does not import it.";

}  // namespace lstm_fused
