// SPDX-License-Identifier: BSD-3-Clause
// Checks that print where they failed, what they got and in which case; a failure does not stop
// the test. `return lstm_fused::test::exit_status();` ends main.
#pragma once

#include <atomic>
#include <cstdio>
#include <functional>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>

#include "common/error.h"

namespace lstm_fused::test {

constexpr int kMaxPrinted = 20;

inline std::atomic<int> failures{0};
inline std::vector<std::string> scopes;  // changed by the main thread alone

inline void report_failure(const char* file, int line, const std::string& text) {
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  if (++failures > kMaxPrinted) return;
  std::fprintf(stderr, "%s:%d: %s\n", file, line, text.c_str());
  for (const std::string& scope : scopes) std::fprintf(stderr, "    in %s\n", scope.c_str());
}

template <typename... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  out.precision(17);
  (out << ... << parts);
  return out.str();
}

template <typename A, typename B, typename Compare>
void compare(const char* file, int line, const char* expression, const A& a, const B& b,
             Compare holds) {
  if (!holds(a, b)) report_failure(file, line, text(expression, ": ", a, ", ", b));
}

// Names the case at hand in the failures that happen while it lives.
class Scope {
 public:
  template <typename... Parts>
  explicit Scope(const Parts&... parts) {
    scopes.push_back(text(parts...));
  }
  ~Scope() { scopes.pop_back(); }
  Scope(const Scope&) = delete;
};

// The message of the Error that `function` throws; empty if none.
template <typename Function>
std::string error_of(const Function& function) {
  try {
    function();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

// Says how many checks failed; gives main's exit status.
inline int exit_status() {
  const int count = failures;
  std::printf(count == 0 ? "ok\n" : "%d checks failed\n", count);
  return count == 0 ? 0 : 1;
}

}  // namespace lstm_fused::test

#define CHECK(condition)                                                                  \
  do {                                                                                    \
    if (!(condition)) ::lstm_fused::test::report_failure(__FILE__, __LINE__, #condition); \
  } while (false)
#define LSTM_COMPARE(a, op, b, holds) \
  ::lstm_fused::test::compare(__FILE__, __LINE__, #a " " #op " " #b, a, b, holds)
#define CHECK_EQ(a, b) LSTM_COMPARE(a, ==, b, std::equal_to<>())
#define CHECK_NE(a, b) LSTM_COMPARE(a, !=, b, std::not_equal_to<>())
#define CHECK_LE(a, b) LSTM_COMPARE(a, <=, b, std::less_equal<>())  // false for NaN
#define CHECK_LT(a, b) LSTM_COMPARE(a, <, b, std::less<>())
