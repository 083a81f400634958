// SPDX-License-Identifier: BSD-3-Clause
// exact_multiply_add as this file's instruction set has it, by double precision where that has no
// FMA, against the C library's fmaf: the int8 cell's bits rest on it.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "check.h"
#include "common/types.h"

namespace lstm_fused::test {
namespace {

#include "cpu/kernels/vec-inl.h"
//
#include "cpu/kernels/multiply_add-inl.h"
//
#include "cpu/quantized/exact_multiply_add-inl.h"

void check(float a, float b, float c) {
  const VecF results = exact_multiply_add(broadcast(a), broadcast(b), broadcast(c));
  const float wanted = std::fma(a, b, c);
  for (int lane = 0; lane < kWidth<float>; ++lane) {
    const float got = results[lane];
    if (std::isnan(wanted) ? std::isnan(got) : std::memcmp(&got, &wanted, sizeof(got)) == 0) {
      continue;
    }
    const Scope scope("a = ", a, ", b = ", b, ", c = ", c);
    CHECK_EQ(got, wanted);
  }
}

// The sum lies 2^-30 of half a unit beside the middle of two floats, which a double does not show.
void test_sums_near_a_middle() {
  std::mt19937 random(1);
  for (int i = 0; i < 20000; ++i) {
    const int exponent = static_cast<int>(random() % 40) - 20;
    const float c = std::ldexp(1 + static_cast<float>(random() % (1 << 23)) * 0x1p-23f, exponent);
    const float half_unit = std::ldexp(1.0f, exponent - 24);
    for (const float sign_c : {1.0f, -1.0f}) {
      for (const float sign : {1.0f, -1.0f}) {
        const float a = sign * half_unit;
        check(a, 1, sign_c * c);
        check(a * (1 + 0x1p-15f), 1 - 0x1p-15f, sign_c * c);             // 1 - 2^-30
        check(a * (1 + 0x1p-10f), 1 - 0x1p-10f + 0x1p-20f, sign_c * c);  // 1 + 2^-30
      }
    }
  }
}

void test_any_numbers() {
  std::mt19937 random(2);
  const auto any = [&](int exponents) {
    const float mantissa = 1 + static_cast<float>(random() % (1 << 23)) * 0x1p-23f;
    const int exponent = static_cast<int>(random() % exponents) - exponents / 2;
    return std::ldexp(random() % 2 ? mantissa : -mantissa, exponent);
  };
  for (int i = 0; i < 200000; ++i) check(any(8), any(8), any(40));
  for (int i = 0; i < 50000; ++i) check(any(250), any(250), any(250));
  // Sums that cancel.
  for (int i = 0; i < 50000; ++i) {
    const float a = any(8), b = any(8);
    check(a, b, -(a * b));
  }
}

void test_special_numbers() {
  using Limits = std::numeric_limits<float>;
  const float numbers[] = {0.0f,
                           -0.0f,
                           1.0f,
                           -1.0f,
                           Limits::min(),
                           Limits::max(),
                           -Limits::max(),
                           Limits::infinity(),
                           -Limits::infinity(),
                           Limits::quiet_NaN()};
  for (const float a : numbers) {
    for (const float b : numbers) {
      for (const float c : numbers) check(a, b, c);
    }
  }
}

}  // namespace
}  // namespace lstm_fused::test

int main() {
  lstm_fused::test::test_sums_near_a_middle();
  lstm_fused::test::test_any_numbers();
  lstm_fused::test::test_special_numbers();
  return lstm_fused::test::exit_status();
}
