// SPDX-License-Identifier: BSD-3-Clause
// linear_step on more rows and longer sums than a core's cache holds at once, for every instruction
// set and dtype: the exact sums, and for a row the same bits as alone.
#include <vector>

#include "arrays.h"
#include "check.h"
#include "cpu/cpu_features.h"

namespace lstm_fused::test {
namespace {

using cpu::KernelTable;
using cpu::kPanelSlots;

constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16};

// Sums of three blocks of a panel, with every instruction set, and of two blocks; both odd.
constexpr int64_t kSizes[] = {4231, 2105};
constexpr int64_t kRows = 100;    // in two chunks of tiles at least
constexpr int64_t kColumns = 70;  // with W = 16 a panel and a part of one

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// -2 … 2: all types hold these, and float the sums of their products.
std::vector<double> small_integers(int64_t n, uint32_t seed) {
  std::vector<double> values(n);
  uint32_t state = seed;
  for (double& value : values) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<int>((state >> 16) % 5) - 2;
  }
  return values;
}

struct Operands {
  std::vector<double> rows[2], columns[2];  // (kRows, K), (kColumns, K)
  std::vector<double> truth;                // (kRows, kColumns)
};

Operands make_operands() {
  Operands out;
  out.truth.assign(kRows * kColumns, 0);
  for (int i = 0; i < 2; ++i) {
    const int64_t size = kSizes[i];
    out.rows[i] = small_integers(kRows * size, 1 + i);
    out.columns[i] = small_integers(kColumns * size, 11 + i);
    for (int64_t row = 0; row < kRows; ++row) {
      for (int64_t column = 0; column < kColumns; ++column) {
        double sum = 0;
        for (int64_t k = 0; k < size; ++k) {
          sum += out.rows[i][row * size + k] * out.columns[i][column * size + k];
        }
        out.truth[row * kColumns + column] += sum;
      }
    }
  }
  return out;
}

void check_table(const KernelTable& table, DType dtype, const Operands& operands) {
  const DType operand = table.operand_size == dtype_size(dtype) ? dtype : accumulator_type(dtype);
  const int64_t panels = ceil_div(kColumns, table.nr());
  const int64_t stride = panels * table.nr();
  std::vector<Array> rows, packed;
  cpu::LinearStep step;
  for (int i = 0; i < 2; ++i) {
    const int64_t padded = ceil_div(kSizes[i], table.k_multiple) * table.k_multiple;
    rows.push_back(Array::input(operand, operands.rows[i]));
    packed.emplace_back(operand, padded * stride);
    const Array columns = Array::input(dtype, operands.columns[i]);
    table.pack_transposed(columns.data(), kColumns, kSizes[i], false, 0, panels, packed[i].data());
  }
  step.columns = kColumns;
  step.panel_end = panels;
  const auto run = [&](int64_t row, int64_t count, void* out) {
    for (int i = 0; i < 2; ++i) {
      (i == 0 ? step.product : step.second) = {
          {rows[i].at(row * kSizes[i]), kSizes[i], nullptr}, kSizes[i], packed[i].data()};
    }
    step.rows = count;
    step.accumulator_out = {out, stride, nullptr};
    table.linear_step(step);
  };
  Array out(accumulator_type(dtype), kRows * stride), alone(accumulator_type(dtype), stride);
  run(0, kRows, out.data());
  for (int64_t row = 0; row < kRows; ++row) {
    run(row, 1, alone.data());
    for (int64_t column = 0; column < kColumns; ++column) {
      CHECK_EQ(out.get(row * stride + column), operands.truth[row * kColumns + column]);
      CHECK_EQ(alone.get(column), out.get(row * stride + column));
    }
  }
}

}  // namespace
}  // namespace lstm_fused::test

int main() {
  using namespace lstm_fused;
  const test::Operands operands = test::make_operands();
  for (cpu::Isa isa : cpu::available_isas()) {
    for (DType dtype : test::kDTypes) {
      const test::Scope scope(cpu::isa_name(isa), ", ", dtype_name(dtype));
      test::check_table(cpu::kernel_table(isa, dtype), dtype, operands);
    }
  }
  return test::exit_status();
}
