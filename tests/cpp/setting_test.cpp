// SPDX-License-Identifier: BSD-3-Clause
#include "common/setting.h"

#include <cstdlib>
#include <string>
#include <utility>

#include "check.h"

namespace lstm_fused::test {
namespace {

constexpr const char* kVariable = "LSTM_FUSED_TEST_SETTING";

Setting make_setting() { return Setting(kVariable, {"any", "one", "two"}, "one or two"); }

void test_environment() {
  unsetenv(kVariable);
  CHECK_EQ(make_setting().index(), 0);
  setenv(kVariable, "", 1);
  CHECK_EQ(make_setting().index(), 0);
  setenv(kVariable, "two", 1);
  CHECK_EQ(make_setting().index(), 2);
  setenv(kVariable, "three", 1);
  CHECK_EQ(error_of([] { make_setting().index(); }),
           "LSTM_FUSED_TEST_SETTING must be one or two, got three");
  unsetenv(kVariable);
}

void test_the_environment_is_read_once() {
  setenv(kVariable, "one", 1);
  const Setting setting = make_setting();
  setenv(kVariable, "two", 1);
  CHECK_EQ(setting.index(), 1);
  unsetenv(kVariable);
  CHECK_EQ(setting.index(), 1);
}

void test_set() {
  setenv(kVariable, "three", 1);
  Setting setting = make_setting();
  CHECK_EQ(setting.set("two"), "any");
  CHECK_EQ(setting.index(), 2);
  CHECK_EQ(error_of([&] { setting.set("three"); }),
           "LSTM_FUSED_TEST_SETTING must be one or two, got three");
  CHECK_EQ(setting.set("one"), "two");
  CHECK_EQ(setting.index(), 1);
  unsetenv(kVariable);
}

void test_numbers() {
  constexpr const char* kError = "LSTM_FUSED_TEST_SETTING must be a number from 0.5 to 100, got ";
  const auto make = [] { return NumberSetting(kVariable, 10, 0.5, 100).value(); };
  unsetenv(kVariable);
  CHECK_EQ(make(), 10);
  const std::pair<const char*, double> values[] = {{"", 10}, {"2", 2}, {"0.5", 0.5}, {"1e2", 100}};
  for (const auto& [text, value] : values) {
    setenv(kVariable, text, 1);
    CHECK_EQ(make(), value);
  }
  for (const char* text : {"0.4", "101", "ten", "2s", "2,5", "nan", "inf", "-3"}) {
    setenv(kVariable, text, 1);
    CHECK_EQ(error_of([&] { make(); }), std::string(kError) + text);
  }
  NumberSetting setting(kVariable, 10, 0.5, 100);
  CHECK_EQ(setting.set(3), 10);  // -3 is no value
  CHECK_EQ(setting.value(), 3);
  CHECK_EQ(error_of([&] { setting.set(0.25); }), std::string(kError) + "0.25");
  CHECK_EQ(setting.set(4), 3);
  unsetenv(kVariable);
}

}  // namespace
}  // namespace lstm_fused::test

int main() {
  lstm_fused::test::test_environment();
  lstm_fused::test::test_the_environment_is_read_once();
  lstm_fused::test::test_set();
  lstm_fused::test::test_numbers();
  return lstm_fused::test::exit_status();
}
