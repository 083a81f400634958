// SPDX-License-Identifier: BSD-3-Clause
// σ and tanh in units of the last place, and conversions of 16-bit types, for every instruction
// set. All are reached through the kernel table.
#include <cmath>
#include <cstdio>
#include <limits>
#include <optional>
#include <random>
#include <vector>

#include "arrays.h"
#include "check.h"
#include "cpu/cpu_features.h"
#include "cpu/runtime/flush_denormals.h"

namespace lstm_fused::test {
namespace {

using cpu::Isa;
using cpu::KernelTable;

// csrc/cpu/kernels/math-inl.h promises these.
constexpr double kMaxSigmoidUlp = 2.5, kMaxTanhUlp = 1.5;
template <typename T>
constexpr T kSigmoidZero = sizeof(T) == 8 ? T(-709.7827128934) : T(-88.72284);  // 0 from here

// Whether denormal numbers are flushed to zero while a kernel runs, as Parallel has it.
enum class Denormals { kKept, kFlushed };

class Mode {
 public:
  explicit Mode(Denormals denormals) {
    if (denormals == Denormals::kFlushed) flush_.emplace();
  }

 private:
  std::optional<cpu::FlushDenormals> flush_;
};

template <typename T>
constexpr DType kDTypeOf = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32;

// ---- σ and tanh

// The four gates of one row without products, whose pre-activations are all x: [4][n].
template <typename T>
std::vector<T> activate(const KernelTable& table, const std::vector<T>& x, Denormals denormals) {
  const int64_t n = static_cast<int64_t>(x.size()), width = table.vector_width;
  const int64_t panels = (n + width - 1) / width;
  std::vector<T> bias(panels * width * kGates), c(n, 0), h(n), gates(kGates * n);
  for (int64_t unit = 0; unit < n; ++unit) {
    for (int g = 0; g < kGates; ++g) {
      bias[(unit / width * kGates + g) * width + unit % width] = x[unit];
    }
  }
  cpu::ForwardStep step;
  step.rows = 1;
  step.hidden_size = n;
  step.panel_end = panels;
  step.bias = bias.data();
  step.c = c.data();
  step.h = {h.data(), n, nullptr};
  step.gates = {gates.data(), kGates * n, nullptr};
  const Mode mode(denormals);
  table.forward_step(step);
  return gates;
}

// tanh(x) as the backward has it: from cells, with open output gates.
template <typename T>
std::vector<T> tanh_of_cells(const KernelTable& table, const std::vector<T>& x,
                             Denormals denormals) {
  const int64_t n = static_cast<int64_t>(x.size());
  std::vector<T> gates(kGates * n, 1), out(n);
  const Mode mode(denormals);
  table.cell_output(gates.data(), x.data(), 1, n, out.data());
  return out;
}

template <typename T>
double ulp_error(T got, long double exact) {
  using Limits = std::numeric_limits<T>;
  if (std::isnan(got) || std::isnan(exact)) {
    return std::isnan(got) && std::isnan(exact) ? 0 : HUGE_VAL;
  }
  int exponent = Limits::min_exponent - 1;  // of subnormal numbers too
  if (exact != 0) exponent = std::max(exponent, std::ilogb(exact));
  const long double ulp = std::ldexp(1.0L, exponent - (Limits::digits - 1));
  return static_cast<double>(std::fabs(got - exact) / ulp);
}

struct Worst {
  double sigmoid = 0, tanh = 0, cell_tanh = 0;
};

template <typename T>
void check_activations(const KernelTable& table, const std::vector<T>& x,
                       const std::vector<long double>& sigmoids,
                       const std::vector<long double>& tanhs, Denormals denormals, Worst& worst) {
  const std::vector<T> gates = activate(table, x, denormals);
  const std::vector<T> cell_tanhs = tanh_of_cells(table, x, denormals);
  const size_t n = x.size();
  for (size_t i = 0; i < n; ++i) {
    // Denormal numbers are 0 where they are flushed: arguments, which are their own tanh, and σ of
    // a gate that is not closed yet, whose error may take it across the bound.
    const auto flushes = [&](long double value) {
      return denormals == Denormals::kFlushed && std::fabs(value) < std::numeric_limits<T>::min();
    };
    const bool flushed = flushes(x[i]);
    double sigmoid_error = ulp_error(gates[i], x[i] <= kSigmoidZero<T> ? 0 : sigmoids[i]);
    if (flushes(sigmoids[i] * (1 - 1e-6L))) {
      CHECK(!flushes(gates[i]) || gates[i] == 0);
      sigmoid_error = std::min(sigmoid_error, ulp_error(gates[i], 0));
    }
    const double tanh_error = ulp_error(gates[kCellGate * n + i], flushed ? 0 : tanhs[i]);
    const double cell_error = ulp_error(cell_tanhs[i], flushed ? 0 : tanhs[i]);
    if (sigmoid_error > kMaxSigmoidUlp || std::max(tanh_error, cell_error) > kMaxTanhUlp) {
      const Scope scope("x = ", x[i]);
      CHECK_LE(sigmoid_error, kMaxSigmoidUlp);
      CHECK_LE(tanh_error, kMaxTanhUlp);
      CHECK_LE(cell_error, kMaxTanhUlp);
    }
    worst.sigmoid = std::max(worst.sigmoid, sigmoid_error);
    worst.tanh = std::max(worst.tanh, tanh_error);
    worst.cell_tanh = std::max(worst.cell_tanh, cell_error);
    if (std::isnan(x[i])) continue;
    // All gates are the same functions, within their ranges.
    CHECK(gates[i] == gates[kForgetGate * n + i] && gates[i] == gates[kOutputGate * n + i]);
    CHECK(gates[i] >= 0 && gates[i] <= 1 && std::fabs(gates[kCellGate * n + i]) <= 1);
    CHECK_EQ(std::signbit(gates[kCellGate * n + i]), std::signbit(x[i]));
  }
}

// Every kind of number: a sweep over all exponents with both signs, and one over where the
// functions bend.
template <typename T>
std::vector<T> sweep() {
  using Limits = std::numeric_limits<T>;
  std::vector<T> x = {0,
                      -T(0),
                      Limits::infinity(),
                      -Limits::infinity(),
                      Limits::max(),
                      Limits::lowest(),
                      Limits::quiet_NaN(),
                      -Limits::quiet_NaN(),
                      Limits::min(),
                      -Limits::min(),
                      Limits::denorm_min(),
                      -Limits::denorm_min()};
  // The worst points of all floats in [-90, 90], and of 16 million doubles.
  for (double worst : {-0x1.0a2bd8p+4, 0x1.41b1cap-1, -0x1.25e9f1147309ap+5, 0x1.4204270f5bf7p-1}) {
    x.push_back(static_cast<T>(worst));
  }
  // Where a gate closes, the last denormal σ, and where 2^n changes on the way there.
  for (const T bound : {kSigmoidZero<T>, T(-87.3365), T(-88.376), T(-103.98), T(-708.396),
                        T(-709.436), T(-745.2)}) {
    for (int i = -2000; i <= 2000; ++i) x.push_back(bound + i * T(0x1p-12));
  }
  std::mt19937_64 random(1);
  constexpr int kExponents = Limits::max_exponent - Limits::min_exponent + Limits::digits;
  for (int i = 0; i < 150000; ++i) {
    const T mantissa = T(random() >> 11) * T(0x1p-53) + 1;
    const int exponent = Limits::max_exponent - 1 - static_cast<int>(random() % kExponents);
    const T magnitude = std::ldexp(mantissa, exponent);
    x.push_back(random() % 2 ? magnitude : -magnitude);
  }
  for (const T bound : {T(0.1), T(1), T(5), T(20), T(100), T(Limits::max_exponent)}) {
    for (int i = -30000; i <= 30000; ++i) {
      x.push_back(bound * (i + T(random() % 1024) / 1024) / 30000);
    }
  }
  return x;
}

template <typename T>
void test_activations(Denormals denormals) {
  const std::vector<T> all = sweep<T>();
  std::vector<Worst> worst(cpu::available_isas().size());
  constexpr size_t kChunk = 4099;  // not a multiple of any vector
  for (size_t begin = 0; begin < all.size(); begin += kChunk) {
    const std::vector<T> x(all.begin() + begin, all.begin() + std::min(begin + kChunk, all.size()));
    std::vector<long double> sigmoids, tanhs;
    for (const long double value : x) {
      sigmoids.push_back(1 / (1 + std::exp(-value)));
      tanhs.push_back(std::tanh(value));
    }
    size_t i = 0;
    for (Isa isa : cpu::available_isas()) {
      const Scope scope(cpu::isa_name(isa), ", ", dtype_name(kDTypeOf<T>));
      check_activations(cpu::kernel_table(isa, kDTypeOf<T>), x, sigmoids, tanhs, denormals,
                        worst[i++]);
    }
  }
  size_t i = 0;
  for (Isa isa : cpu::available_isas()) {
    const Worst& found = worst[i++];
    std::printf("%-11s %s: largest error in ulp: sigmoid %.3f, tanh %.3f, tanh of cells %.3f\n",
                cpu::isa_name(isa), dtype_name(kDTypeOf<T>), found.sigmoid, found.tanh,
                found.cell_tanh);
  }
}

// ---- Conversions

using Convert = void (*)(const void* source, int64_t n, void* out);

template <typename From, typename To>
std::vector<To> converted(Convert convert, const std::vector<From>& from, Denormals denormals) {
  std::vector<To> out(from.size());
  const Mode mode(denormals);
  convert(from.data(), static_cast<int64_t>(from.size()), out.data());
  return out;
}

bool is_nan_16(DType dtype, uint16_t bits) { return std::isnan(widen(dtype, bits)); }

std::vector<uint16_t> all_16_bit_values() {
  std::vector<uint16_t> values(1 << 16);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<uint16_t>(i);
  return values;
}

void check_widening(DType dtype, Convert convert, Denormals denormals) {
  const std::vector<uint16_t> from = all_16_bit_values();
  const std::vector<float> got = converted<uint16_t, float>(convert, from, denormals);
  for (size_t i = 0; i < from.size(); ++i) {
    const double wanted = widen(dtype, from[i]);
    if (std::isnan(wanted)) {
      CHECK(std::isnan(got[i]));
    } else {
      CHECK_EQ(got[i], wanted);
    }
    CHECK_EQ(std::signbit(got[i]), (from[i] & 0x8000) != 0);
  }
}

// Every value, every midpoint between two and its neighbours, and floats of all exponents.
std::vector<float> floats_to_narrow(DType dtype) {
  std::vector<float> values;
  const auto add = [&](float value) {
    for (float magnitude :
         {std::nextafter(value, -HUGE_VALF), value, std::nextafter(value, HUGE_VALF)}) {
      values.push_back(magnitude);
      values.push_back(-magnitude);
    }
  };
  const int infinity = format_of(dtype).infinity_bits();
  for (int bits = 0; bits < infinity; ++bits) {
    const double low = widen(dtype, static_cast<uint16_t>(bits));
    // Above the largest number lies what would be the next one: its half way is infinity.
    const double high = bits + 1 < infinity ? widen(dtype, static_cast<uint16_t>(bits + 1))
                                            : 2 * low - widen(dtype, infinity - 2);
    add(static_cast<float>(low));
    add(static_cast<float>((low + high) / 2));
  }
  for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += 4093) {
    const uint32_t word = static_cast<uint32_t>(bits);
    float value;
    std::memcpy(&value, &word, sizeof(value));
    values.push_back(value);
  }
  for (uint32_t word : {0x7F800000u, 0xFF800000u, 0x7F800001u, 0xFF800001u, 0x7FFFFFFFu,
                        0xFFFFFFFFu, 0x7F808000u, 0x7FC00000u}) {
    float value;
    std::memcpy(&value, &word, sizeof(value));
    values.push_back(value);
  }
  return values;
}

void check_narrowing(DType dtype, Convert convert, Denormals denormals) {
  const std::vector<float> from = floats_to_narrow(dtype);
  const std::vector<uint16_t> got = converted<float, uint16_t>(convert, from, denormals);
  const int quiet = 1 << (format_of(dtype).mantissa_bits - 1);
  for (size_t i = 0; i < from.size(); ++i) {
    if (std::isnan(from[i])) {
      CHECK(is_nan_16(dtype, got[i]) && (got[i] & quiet));
    } else if (got[i] != narrow(dtype, from[i])) {
      const Scope scope("from ", from[i]);
      CHECK_EQ(got[i], narrow(dtype, from[i]));
    }
  }
}

void check_round_trip(DType dtype, const KernelTable& table) {
  const std::vector<uint16_t> from = all_16_bit_values();
  std::vector<uint32_t> operands(from.size());  // room for either operand type
  const int64_t n = static_cast<int64_t>(from.size());
  table.storage_to_operand(from.data(), n, operands.data());
  std::vector<uint16_t> back(from.size());
  table.operand_to_storage(operands.data(), n, back.data());
  for (size_t i = 0; i < from.size(); ++i) {
    if (is_nan_16(dtype, from[i])) {
      CHECK(is_nan_16(dtype, back[i]));
    } else {
      CHECK_EQ(back[i], from[i]);
    }
  }
}

// All numbers of elements around a vector, within their arrays.
void check_lengths(DType dtype, const KernelTable& table) {
  const DType accumulator = accumulator_type(dtype);
  for (int64_t n = 0; n <= 4 * table.vector_width + 1; ++n) {
    Array storage(dtype, n), wide(accumulator, n), back(dtype, n);
    for (int64_t i = 0; i < n; ++i) storage.set(i, i - 2.5);
    table.storage_to_accumulator(storage.data(), n, wide.data());
    table.accumulator_to_storage(wide.data(), n, back.data());
    for (int64_t i = 0; i < n; ++i) CHECK_EQ(wide.get(i), i - 2.5);
    CHECK(back.same_bits(storage));

    const DType operand = table.operand_size == dtype_size(dtype) ? dtype : accumulator;
    Array operands(operand, n);
    back.fill_canary();
    table.storage_to_operand(storage.data(), n, operands.data());
    table.operand_to_storage(operands.data(), n, back.data());
    for (int64_t i = 0; i < n; ++i) CHECK_EQ(operands.get(i), i - 2.5);
    CHECK(back.same_bits(storage));
  }
}

// The state on its way to the next step is what y shows, in whatever type it travels.
void check_state(DType dtype, const KernelTable& table) {
  const int64_t n = 3 * table.vector_width + 1, panels = 4;
  const DType operand = table.operand_size == dtype_size(dtype) ? dtype : accumulator_type(dtype);
  Array bias(accumulator_type(dtype), panels * table.vector_width * kGates);
  Array c(accumulator_type(dtype), n), h(operand, n), y(dtype, n);
  for (int64_t i = 0; i < bias.size(); ++i) bias.set(i, std::sin(i));
  for (int64_t i = 0; i < n; ++i) c.set(i, std::cos(i));
  cpu::ForwardStep step;
  step.rows = 1;
  step.hidden_size = n;
  step.panel_end = panels;
  step.bias = bias.data();
  step.c = c.data();
  step.h = {h.data(), n, nullptr};
  step.y = {y.data(), n, nullptr};
  table.forward_step(step);
  for (int64_t i = 0; i < n; ++i) CHECK_EQ(h.get(i), y.get(i));
}

void test_conversions() {
  for (Isa isa : cpu::available_isas()) {
    for (DType dtype : {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16}) {
      const Scope scope(cpu::isa_name(isa), ", ", dtype_name(dtype));
      const KernelTable& table = cpu::kernel_table(isa, dtype);
      check_lengths(dtype, table);
      check_state(dtype, table);
      if (dtype_size(dtype) > 2) continue;
      for (Denormals denormals : {Denormals::kKept, Denormals::kFlushed}) {
        check_widening(dtype, table.storage_to_accumulator, denormals);
        check_narrowing(dtype, table.accumulator_to_storage, denormals);
      }
      check_round_trip(dtype, table);
    }
  }
}

// The tests' own conversions, at values known from the formats' definitions.
void test_scalar_conversions() {
  const auto half = DType::kFloat16, brain = DType::kBFloat16;
  CHECK_EQ(widen(half, 0x3C00), 1.0);
  CHECK_EQ(widen(half, 0x7BFF), 65504.0);
  CHECK_EQ(widen(half, 0x8001), -0x1p-24);
  CHECK_EQ(widen(half, 0x03FF), 0x1p-14 - 0x1p-24);
  CHECK_EQ(widen(half, 0xFC00), -HUGE_VAL);
  CHECK(std::isnan(widen(half, 0x7C01)));
  CHECK_EQ(widen(brain, 0x3F80), 1.0);
  CHECK_EQ(widen(brain, 0xC049), -3.140625);
  CHECK_EQ(widen(brain, 0x0001), 0x1p-133);
  CHECK_EQ(narrow(half, 65519.0), 0x7BFF);
  CHECK_EQ(narrow(half, 65520.0), 0x7C00);
  CHECK_EQ(narrow(half, 0x1p-25), 0x0000);
  CHECK_EQ(narrow(half, 0x1.8p-24), 0x0002);
  CHECK_EQ(narrow(half, -(1 + 0x1p-11)), 0xBC00);
  CHECK_EQ(narrow(half, 1 + 0x3p-11), 0x3C02);
  CHECK_EQ(narrow(brain, 1 + 0x1p-8), 0x3F80);
  CHECK_EQ(narrow(brain, 1 + 0x3p-8), 0x3F82);
  CHECK_EQ(narrow(brain, std::numeric_limits<float>::max()), 0x7F80);
  for (uint16_t bits : all_16_bit_values()) {
    for (DType dtype : {half, brain}) {
      if (!is_nan_16(dtype, bits)) CHECK_EQ(narrow(dtype, widen(dtype, bits)), bits);
    }
  }
}

}  // namespace
}  // namespace lstm_fused::test

int main() {
  using namespace lstm_fused::test;
  test_scalar_conversions();
  test_conversions();
  for (auto denormals : {Denormals::kKept, Denormals::kFlushed}) {
    test_activations<float>(denormals);
    test_activations<double>(denormals);
  }
  return exit_status();
}
