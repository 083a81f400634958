// SPDX-License-Identifier: BSD-3-Clause
#include "common/setting.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <locale>
#include <sstream>
#include <utility>

#include "common/error.h"

namespace lstm_fused {
namespace {

std::string environment(const char* variable) {
  const char* value = std::getenv(variable);
  return value ? value : "";
}

// NaN for what is no number. Takes a point for the decimal point, whatever the locale.
double parse_number(const std::string& text) {
  std::istringstream stream(text);
  stream.imbue(std::locale::classic());
  double value = 0;
  stream >> value;
  const bool is_whole = !stream.fail() && stream.peek() == std::istringstream::traits_type::eof();
  return is_whole ? value : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace

Setting::Setting(const char* variable, std::vector<std::string> values, const char* wanted)
    : variable_(variable),
      values_(std::move(values)),
      wanted_(wanted),
      at_load_(environment(variable)),
      index_(at_load_.empty() ? 0 : find(at_load_)) {}

int Setting::find(const std::string& value) const {
  const auto found = std::find(values_.begin(), values_.end(), value);
  return found == values_.end() ? -1 : static_cast<int>(found - values_.begin());
}

void Setting::refuse(const std::string& value) const {
  fail(variable_, " must be ", wanted_, ", got ", value);
}

int Setting::index() const {
  const int index = index_.load(std::memory_order_relaxed);
  if (index < 0) refuse(at_load_);
  return index;
}

std::string Setting::set(const std::string& value) {
  const int index = find(value);
  if (index < 0) refuse(value);
  const int before = index_.exchange(index);
  return before < 0 ? values_.front() : values_[before];
}

NumberSetting::NumberSetting(const char* variable, double unset, double least, double most)
    : variable_(variable),
      unset_(unset),
      least_(least),
      most_(most),
      at_load_(environment(variable)) {
  const double value = at_load_.empty() ? unset : parse_number(at_load_);
  value_ = is_allowed(value) ? value : std::numeric_limits<double>::quiet_NaN();
}

void NumberSetting::refuse(const std::string& value) const {
  fail(variable_, " must be a number from ", least_, " to ", most_, ", got ", value);
}

double NumberSetting::value() const {
  const double value = value_.load(std::memory_order_relaxed);
  if (std::isnan(value)) refuse(at_load_);
  return value;
}

double NumberSetting::set(double value) {
  if (!is_allowed(value)) {
    std::ostringstream text;
    text << value;
    refuse(text.str());
  }
  const double before = value_.exchange(value);
  return std::isnan(before) ? unset_ : before;
}

}  // namespace lstm_fused
