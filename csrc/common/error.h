// SPDX-License-Identifier: BSD-3-Clause
// The one exception of the torch-free core, and the check that throws it.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace lstm_fused {

// Thrown on bad arguments; what() is a whole sentence: what, got, wanted.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Error(text.str());
}

// For memory that the system does not give. NOTE: in the words of torch's allocator, by which
// programs that search for a batch size that fits tell such an error.
[[noreturn]] inline void fail_to_allocate(const std::string& bytes) {
  fail("DefaultCPUAllocator: can't allocate memory: you tried to allocate ", bytes,
       " bytes, in lstm_fused");
}

}  // namespace lstm_fused

// Throws Error with the sentence made of `...` unless `condition` holds.
#define LSTM_CHECK(condition, ...)                     \
  do {                                                 \
    if (!(condition)) ::lstm_fused::fail(__VA_ARGS__); \
  } while (false)
