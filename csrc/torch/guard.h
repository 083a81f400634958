// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <new>
#include <stdexcept>

#include "common/error.h"

namespace lstm_fused {

// Throws Error for a tensor that is none: what Python's None becomes where an op takes a tensor.
inline void refuse_none(const torch::stable::Tensor& tensor, int position) {
  LSTM_CHECK(tensor.defined(), "argument ", position, " of the op must be a tensor, got None");
}
template <typename Other>
void refuse_none(const Other&, int) {}

// What call() gives. Where its C++ containers fail to allocate, that is said as torch says it: by
// an Error, which Python sees as RuntimeError.
template <typename Call>
auto in_torchs_words(const Call& call) {
  try {
    return call();
  } catch (const std::bad_alloc&) {
    fail_to_allocate("too many");
  } catch (const std::length_error&) {
    fail_to_allocate("too many");
  }
}

// An op whose errors Python can read.
template <auto op>
struct Guarded;

template <typename Result, typename... Arguments, Result (*op)(Arguments...)>
struct Guarded<op> {
  static Result call(Arguments... arguments) {
    try {
      return in_torchs_words([&] { return op(arguments...); });
    } catch (const std::runtime_error&) {
      // NOTE: looked for only now, since any use of such a tensor throws, and a step of a small
      // LSTM takes 2 microseconds.
      int position = 0;
      (refuse_none(arguments, ++position), ...);
      throw;
    }
  }
};

}  // namespace lstm_fused
