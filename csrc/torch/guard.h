// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <new>
#include <stdexcept>

#include "common/error.h"

namespace lstm_fused {

// An op whose C++ containers may fail to allocate, which is said as torch says it: by an Error,
// which Python sees as RuntimeError.
template <auto op>
struct Guarded;

template <typename Result, typename... Arguments, Result (*op)(Arguments...)>
struct Guarded<op> {
  static Result call(Arguments... arguments) {
    try {
      return op(arguments...);
    } catch (const std::bad_alloc&) {
      fail_to_allocate("too many");
    } catch (const std::length_error&) {
      fail_to_allocate("too many");
    }
  }
};

}  // namespace lstm_fused
