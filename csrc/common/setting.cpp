// SPDX-License-Identifier: BSD-3-Clause
#include "common/setting.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "common/error.h"

namespace lstm_fused {
namespace {

std::string environment(const char* variable) {
  const char* value = std::getenv(variable);
  return value ? value : "";
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

}  // namespace lstm_fused
