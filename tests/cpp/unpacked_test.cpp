// SPDX-License-Identifier: BSD-3-Clause
// Products with weights as they are, and sums of outer products, for every instruction set and
// dtype: exact sums; the bits of the products from panels; for a row, those that it has alone.
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

// Multiples of 1/8 up to 2: all types hold these, and float the sums of some hundred products.
std::vector<double> eighths(int64_t n, uint32_t seed) {
  std::vector<double> values(n);
  uint32_t state = seed;
  for (double& value : values) {
    state = state * 1664525u + 1013904223u;
    value = (static_cast<int>((state >> 16) % 33) - 16) / 8.0;
  }
  return values;
}

// Values whose sums depend on their order: thirds.
std::vector<double> thirds(int64_t n, uint32_t seed) {
  std::vector<double> values = eighths(n, seed);
  for (double& value : values) value /= 3;
  return values;
}

DType operand_type(const KernelTable& table, DType dtype) {
  return table.operand_size == dtype_size(dtype) ? dtype : accumulator_type(dtype);
}

// One row, a block of rows and more, chunks of tiles and more; K of a part of a block, of several,
// odd; a lane, part of a panel, a panel and more, several groups of panels.
struct Shape {
  int64_t rows, sizes[2], columns;
};
constexpr Shape kShapes[] = {{1, {4, 0}, 1},       {1, {100, 33}, 70},  {2, {32, 64}, 17},
                             {3, {65, 1}, 200},    {6, {40, 12}, 64},   {7, {31, 68}, 35},
                             {13, {128, 5}, 1100}, {100, {36, 35}, 90}, {1, {40, 0}, 2100}};

class Products {
 public:
  Products(const KernelTable& table, DType dtype, const Shape& shape, bool exact)
      : table_(table), dtype_(dtype), shape_(shape) {
    truth.assign(shape.rows * shape.columns, 0);
    for (int i = 0; i < 2; ++i) {
      const int64_t size = shape.sizes[i], columns = shape.columns;
      const auto values = exact ? eighths : thirds;
      const std::vector<double> rows = values(shape.rows * size, 1 + i);
      const std::vector<double> matrix = values(size * columns, 11 + i);
      for (int64_t row = 0; row < shape.rows; ++row) {
        for (int64_t k = 0; k < size; ++k) {
          for (int64_t c = 0; c < columns; ++c) {
            truth[row * columns + c] += rows[row * size + k] * matrix[k * columns + c];
          }
        }
      }
      rows_[i] = Array::input(operand_type(table, dtype), rows);
      matrix_[i] = Array::input(dtype, matrix);
      const int64_t padded = ceil_div(size, table.k_multiple) * table.k_multiple;
      packed_[i] = Array(operand_type(table, dtype), padded * panels() * table.nr());
      table.pack_untransposed(matrix_[i].data(), columns, size, 0, panels(), packed_[i].data());
    }
  }

  int64_t panels() const { return ceil_div(shape_.columns, table_.nr()); }

  // Rows [row, row + count) of the sum of both products, to panels [begin, end) of out (rows,
  // columns).
  void run(bool unpacked, int64_t row, int64_t count, int64_t begin, int64_t end, void* out) const {
    cpu::LinearStep step;
    step.rows = count;
    step.columns = shape_.columns;
    step.panel_begin = begin;
    step.panel_end = end;
    for (int i = 0; i < 2; ++i) {
      cpu::Product& product = i == 0 ? step.product : step.second;
      product.operand = {rows_[i].at(row * shape_.sizes[i]), shape_.sizes[i], nullptr};
      product.size = shape_.sizes[i];
      if (unpacked) {
        product.matrix = matrix_[i].data();
        product.matrix_columns = shape_.columns;
      } else {
        product.panels = packed_[i].data();
      }
    }
    step.out = {out, shape_.columns, nullptr};
    table_.linear_step(step);
  }

  std::vector<double> truth;

 private:
  const KernelTable& table_;
  const DType dtype_;
  const Shape& shape_;
  Array rows_[2], matrix_[2], packed_[2];
};

void check_products(const KernelTable& table, DType dtype, const Shape& shape) {
  const Scope scope("products of ", shape.rows, " rows, K=", shape.sizes[0], "+", shape.sizes[1],
                    ", ", shape.columns, " columns");
  const int64_t size = shape.rows * shape.columns;
  {
    const Products products(table, dtype, shape, /*exact=*/true);
    Array out(dtype, size);
    products.run(true, 0, shape.rows, 0, products.panels(), out.data());
    for (int64_t i = 0; i < size; ++i) CHECK_EQ(out.get(i), round_to(dtype, products.truth[i]));
  }
  const Products products(table, dtype, shape, /*exact=*/false);
  Array wanted(dtype, size), out(dtype, size), alone(dtype, shape.columns);
  products.run(false, 0, shape.rows, 0, products.panels(), wanted.data());
  products.run(true, 0, shape.rows, 0, products.panels(), out.data());
  CHECK(out.same_bits(wanted));
  // The panels in two calls, as two threads share them.
  const int64_t middle = products.panels() / 2;
  out.fill_canary();
  products.run(true, 0, shape.rows, middle, products.panels(), out.data());
  products.run(true, 0, shape.rows, 0, middle, out.data());
  CHECK(out.same_bits(wanted));
  for (int64_t row = 0; row < shape.rows; ++row) {
    products.run(true, row, 1, 0, products.panels(), alone.data());
    for (int64_t c = 0; c < shape.columns; ++c) {
      CHECK_EQ(alone.get(c), out.get(row * shape.columns + c));
    }
  }
}

// Σ_k grads[k]ᵀ·operands[k] for columns [begin, end) of grads.
void check_outer(const KernelTable& table, DType dtype, int64_t k_size, int64_t columns) {
  constexpr int64_t kGradColumns = 60, kBegin = 16;
  for (const int64_t end : {kBegin, kBegin + 1, kBegin + 23, kGradColumns}) {
    const Scope scope("outer products of ", k_size, " rows, ", end - kBegin, " x ", columns);
    for (const bool exact : {true, false}) {
      const auto values = exact ? eighths : thirds;
      const std::vector<double> grad = values(k_size * kGradColumns, 3);
      const std::vector<double> operand = values(k_size * columns, 4);
      const Array grads = Array::input(dtype, grad), operands = Array::input(dtype, operand);
      std::vector<const void*> grad_rows, operand_rows;
      for (int64_t k = 0; k < k_size; ++k) {
        grad_rows.push_back(grads.at(k * kGradColumns));
        operand_rows.push_back(operands.at(k * columns));
      }
      const int64_t rows = end - kBegin;
      Array out(dtype, rows * columns);
      table.outer_products(
          {grad_rows.data(), operand_rows.data(), k_size, kBegin, end, columns, out.data()});
      if (exact) {
        for (int64_t i = 0; i < rows * columns; ++i) {
          double sum = 0;
          for (int64_t k = 0; k < k_size; ++k) {
            sum +=
                grad[k * kGradColumns + kBegin + i / columns] * operand[k * columns + i % columns];
          }
          CHECK_EQ(out.get(i), round_to(dtype, sum));
        }
        continue;
      }

      // From panels.
      const DType type = operand_type(table, dtype);
      const int64_t whole = table.vector_width * table.k_multiple;
      const int64_t stride = ceil_div(k_size, whole) * whole;
      const int64_t panels = ceil_div(columns, table.nr());
      Array transposed(type, rows * stride);
      Array packed(type, panels * table.nr() * stride);
      table.pack_columns(grad_rows.data(), k_size, kBegin, end, stride, transposed.data());
      table.pack_rows(operand_rows.data(), k_size, columns, packed.data());
      Array wanted(dtype, rows * columns);
      cpu::LinearStep step;
      step.rows = rows;
      step.columns = columns;
      step.panel_end = panels;
      step.product.operand = {transposed.data(), stride, nullptr};
      step.product.size = k_size;
      step.product.panels = packed.data();
      step.out = {wanted.data(), columns, nullptr};
      table.linear_step(step);
      CHECK(out.same_bits(wanted));
    }
  }
}

void run_all() {
  for (const cpu::Isa isa : cpu::available_isas()) {
    for (const DType dtype : kDTypes) {
      const Scope scope(cpu::isa_name(isa), ", ", dtype_name(dtype));
      const KernelTable& table = cpu::kernel_table(isa, dtype);
      for (const Shape& shape : kShapes) check_products(table, dtype, shape);
      for (const int64_t k_size : {int64_t{1}, int64_t{2}, int64_t{5}, cpu::kMaxOuterRows}) {
        for (const int64_t columns : {1, 19, 64, 133}) check_outer(table, dtype, k_size, columns);
      }
    }
  }
}

}  // namespace
}  // namespace lstm_fused::test

int main() {
  lstm_fused::test::run_all();
  return lstm_fused::test::exit_status();
}
