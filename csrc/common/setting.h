// SPDX-License-Identifier: BSD-3-Clause
// Choices and numbers that the user sets by environment variables.
//
// A variable is read once, when the library that holds the setting is loaded. NOTE: not in a call,
// which runs beside threads that may write the environment: getenv then reads freed memory.
#pragma once

#include <atomic>
#include <string>
#include <vector>

namespace lstm_fused {

class Setting {
 public:
  // The values that the variable may have, of which the first stands for an unset one. `wanted`
  // lists them for an error.
  Setting(const char* variable, std::vector<std::string> values, const char* wanted);

  // Index of the value in use. Throws Error where the variable had none of them.
  int index() const;

  // Replaces the value for all calls that begin from now on; gives the one before. Throws Error for
  // what is no value.
  std::string set(const std::string& value);

 private:
  int find(const std::string& value) const;
  [[noreturn]] void refuse(const std::string& value) const;

  const std::string variable_;
  const std::vector<std::string> values_;
  const std::string wanted_;
  const std::string at_load_;
  std::atomic<int> index_;  // -1: at_load_ is no value
};

// A number, as Setting is a choice.
class NumberSetting {
 public:
  // `unset`: the value where the variable is not set. All must lie between `least` and `most`.
  NumberSetting(const char* variable, double unset, double least, double most);

  // The value in use. Throws Error where the variable had none.
  double value() const;

  // As Setting::set.
  double set(double value);

 private:
  bool is_allowed(double value) const { return value >= least_ && value <= most_; }
  [[noreturn]] void refuse(const std::string& value) const;

  const std::string variable_;
  const double unset_, least_, most_;
  const std::string at_load_;
  std::atomic<double> value_;  // NaN: at_load_ is no value
};

}  // namespace lstm_fused
