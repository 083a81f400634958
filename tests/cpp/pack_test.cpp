// SPDX-License-Identifier: BSD-3-Clause
// Panels of weights and biases are what kernels.h says, element by element, for every instruction
// set, dtype, and shape around the vector's width; nothing outside is read or written.
#include <algorithm>
#include <vector>

#include "arrays.h"
#include "check.h"
#include "cpu/cpu_features.h"

namespace lstm_fused::test {
namespace {

using cpu::KernelTable;
using cpu::kPanelSlots;

constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Elements that all types hold, none of them zero, and unlike their neighbours.
Array numbered(DType dtype, int64_t n) {
  std::vector<double> values(n);
  for (int64_t i = 0; i < n; ++i) values[i] = (i * 37 % 127 + 1) * (i % 2 ? -1 : 1);
  return Array::input(dtype, values);
}

enum class Source { kGates, kTransposed, kUntransposed };

// Column of slot q, lane l of panel p; -1 past the end.
int64_t column_of(Source source, int64_t columns, int64_t width, int64_t p, int64_t q, int64_t l) {
  if (source == Source::kGates) {
    const int64_t hidden = columns / kPanelSlots, unit = p * width + l;
    return unit < hidden ? q * hidden + unit : -1;
  }
  const int64_t column = (kPanelSlots * p + q) * width + l;
  return column < columns ? column : -1;
}

void check_panels(const KernelTable& table, DType dtype, Source source, int64_t columns,
                  int64_t k_size) {
  const Scope scope("source ", static_cast<int>(source), ", ", columns, " columns, K = ", k_size);
  const int64_t width = table.vector_width, multiple = table.k_multiple;
  const int64_t slot_columns = source == Source::kGates ? columns / kPanelSlots : columns;
  const int64_t panels =
      ceil_div(slot_columns, source == Source::kGates ? width : kPanelSlots * width);
  const int64_t padded = ceil_div(k_size, multiple) * multiple;
  const int64_t panel_size = padded * kPanelSlots * width;
  const DType operand = table.operand_size == dtype_size(dtype) ? dtype : accumulator_type(dtype);
  const Array weights = numbered(dtype, columns * k_size);

  // In pieces, as threads do: each writes its own panels only.
  Array packed(operand, panels * panel_size);
  for (int64_t p = panels; p-- > 0;) {
    if (source == Source::kUntransposed) {
      table.pack_untransposed(weights.data(), columns, k_size, p, p + 1, packed.data());
    } else {
      table.pack_transposed(weights.data(), columns, k_size, source == Source::kGates, p, p + 1,
                            packed.data());
    }
    if (p > 0 && panel_size > 0) CHECK(packed.is_canary(p * panel_size - 1));
  }
  for (int64_t p = 0; p < panels; ++p) {
    for (int64_t k = 0; k < padded; ++k) {
      for (int64_t q = 0; q < kPanelSlots; ++q) {
        for (int64_t l = 0; l < width; ++l) {
          // [K / multiple][4][W][multiple]
          const int64_t at = p * panel_size +
                             ((k / multiple * kPanelSlots + q) * width + l) * multiple +
                             k % multiple;
          const int64_t column = column_of(source, columns, width, p, q, l);
          double wanted = 0;
          if (column >= 0 && k < k_size) {
            wanted = weights.get(source == Source::kUntransposed ? k * columns + column
                                                                 : column * k_size + k);
          }
          CHECK_EQ(packed.get(at), wanted);
        }
      }
    }
  }
}

void check_bias(const KernelTable& table, DType dtype, int64_t hidden, bool has_ih, bool has_hh) {
  const Scope scope("bias, H = ", hidden);
  const int64_t width = table.vector_width, panels = ceil_div(hidden, width);
  const Array ih = numbered(dtype, 4 * hidden), hh = numbered(dtype, 4 * hidden);
  Array out(accumulator_type(dtype), panels * kPanelSlots * width);
  table.pack_bias(has_ih ? ih.data() : nullptr, has_hh ? hh.data() : nullptr, hidden, out.data());
  for (int64_t unit = 0; unit < hidden; ++unit) {
    for (int64_t g = 0; g < kPanelSlots; ++g) {
      const double wanted =
          (has_ih ? ih.get(g * hidden + unit) : 0) + (has_hh ? hh.get(g * hidden + unit) : 0);
      CHECK_EQ(out.get((unit / width * kPanelSlots + g) * width + unit % width), wanted);
    }
  }
}

void check_table(const KernelTable& table, DType dtype) {
  const int64_t W = table.vector_width;
  for (int64_t k_size : {int64_t{0}, int64_t{1}, int64_t{2}, int64_t{3}, W - 1, W, W + 1, 2 * W - 1,
                         2 * W, 2 * W + 1, 4 * W + 3}) {
    for (int64_t hidden : {int64_t{1}, W - 1, W, W + 1, 2 * W + 3}) {
      check_panels(table, dtype, Source::kGates, 4 * hidden, k_size);
    }
    for (int64_t columns :
         {int64_t{1}, int64_t{3}, W, W + 1, 4 * W - 1, 4 * W, 4 * W + 1, 7 * W + 2, 9 * W}) {
      check_panels(table, dtype, Source::kTransposed, columns, k_size);
      check_panels(table, dtype, Source::kUntransposed, columns, k_size);
    }
  }
  for (int64_t hidden = 1; hidden <= 2 * W + 1; ++hidden) {
    for (bool has_ih : {false, true}) {
      for (bool has_hh : {false, true}) check_bias(table, dtype, hidden, has_ih, has_hh);
    }
  }
}

}  // namespace
}  // namespace lstm_fused::test

int main() {
  using namespace lstm_fused;
  for (cpu::Isa isa : cpu::available_isas()) {
    for (DType dtype : test::kDTypes) {
      const test::Scope scope(cpu::isa_name(isa), ", ", dtype_name(dtype));
      test::check_table(cpu::kernel_table(isa, dtype), dtype);
    }
  }
  return test::exit_status();
}
