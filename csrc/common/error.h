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

}  // namespace lstm_fused

// Throws Error with the sentence made of `...` unless `condition` holds.
#define LSTM_CHECK(condition, ...)                     \
  do {                                                 \
    if (!(condition)) ::lstm_fused::fail(__VA_ARGS__); \
  } while (false)
