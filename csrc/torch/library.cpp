// SPDX-License-Identifier: BSD-3-Clause
// liblstm_fused_ops.so: loading it registers the ops, for programs that hold no Python.
#include <cstdio>

#include "torch/registration.h"

namespace {

// NOTE: no exception, which nobody catches while a library is loaded; the ops that are there serve.
[[maybe_unused]] const bool registered = [] {
  const bool succeeds = lstm_fused::register_ops();
  if (!succeeds) std::fprintf(stderr, "%s\n", lstm_fused::kTakenError);
  return succeeds;
}();

}  // namespace
