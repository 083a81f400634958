// SPDX-License-Identifier: BSD-3-Clause
// weight_gradient against plain sums, for every instruction set and dtype: shapes around the sizes
// of blocks and parts; rows in any order; the same bits on any pool, and for each sample.
#include "cpu/gradients/weight_gradient.h"

#include <cstdio>
#include <vector>

#include "lstm_calls.h"

namespace lstm_fused::test {
namespace {

constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16};

struct Shape {
  int64_t rows, grad_columns, columns[2];
};
// No rows, one block of them and less, several; columns of part of a panel, of half a panel, of
// more; grad in one part and in several.
constexpr Shape kShapes[] = {
    {0, 4, {3, 1}},     {1, 4, {1, 1}},      {2, 12, {33, 3}},   {255, 20, {5, 5}},
    {257, 52, {1, 13}}, {600, 100, {65, 7}}, {2100, 8, {3, 20}}, {300, 800, {9, 17}},
};

double epsilon(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return 0x1p-52;
    case DType::kFloat32:
      return 0x1p-23;
    default:
      return std::ldexp(1.0, -format_of(dtype).mantissa_bits);
  }
}

// Pointers at the rows of (M, columns).
std::vector<const void*> rows_of(const Array& matrix, int64_t rows, int64_t columns) {
  std::vector<const void*> pointers;
  for (int64_t m = 0; m < rows; ++m) pointers.push_back(matrix.at(m * columns));
  return pointers;
}

// Σ_m grad[m]ᵀ·operand[m], and the tolerance: a rounding of the result, and some of the sums.
void check_sums(const Array& found, const Values& grad, const Values& operand,
                const std::vector<int64_t>& order, const Shape& shape, int64_t columns,
                DType dtype) {
  const double sum_epsilon = dtype == DType::kFloat64 ? 0x1p-52 : 0x1p-23;
  for (int64_t c = 0; c < shape.grad_columns; ++c) {
    for (int64_t k = 0; k < columns; ++k) {
      double truth = 0, magnitude = 0;
      for (int64_t m = 0; m < shape.rows; ++m) {
        const double product = grad[m * shape.grad_columns + c] * operand[order[m] * columns + k];
        truth += product;
        magnitude += std::fabs(product);
      }
      const double error = std::fabs(found.get(c * columns + k) - truth);
      CHECK_LE(error, epsilon(dtype) * std::fabs(truth) + 8 * sum_epsilon * magnitude);
    }
  }
}

void check_shape_of(const Shape& shape, DType dtype, cpu::Isa isa) {
  Random random(21);
  const Values grad = random.uniform(shape.rows * shape.grad_columns, 1, dtype);
  const Array grad_array = Array::input(dtype, grad);
  // Rows stand in reverse, so that none is where its number says.
  std::vector<int64_t> order;
  for (int64_t m = shape.rows; m-- > 0;) order.push_back(m);

  const std::vector<const void*> grads = rows_of(grad_array, shape.rows, shape.grad_columns);

  cpu::WeightGradientArgs args;
  args.dtype = dtype;
  args.rows = shape.rows;
  args.grads = grads.data();
  args.grad_columns = shape.grad_columns;
  args.weights = 2;
  Values operands[2];
  Array operand_arrays[2], out[2], other[2];
  // The biases' gradients are sums of products with ones.
  const Values ones(shape.rows, 1);
  Array bias[2], other_bias[2];
  std::vector<const void*> pointers[2];
  for (int i = 0; i < 2; ++i) {
    const int64_t columns = shape.columns[i];
    operands[i] = random.uniform(shape.rows * columns, 1, dtype);
    operand_arrays[i] = Array::input(dtype, operands[i]);
    for (const int64_t m : order) pointers[i].push_back(operand_arrays[i].at(m * columns));
    out[i] = Array(dtype, shape.grad_columns * columns);
    other[i] = Array(dtype, shape.grad_columns * columns);
    args.weight[i] = {pointers[i].data(), columns, out[i].data()};
    bias[i] = Array(dtype, shape.grad_columns);
    other_bias[i] = Array(dtype, shape.grad_columns);
    args.grad_bias[i] = bias[i].data();
  }
  cpu::weight_gradient(args, isa, kOneThread.parallel);
  for (int i = 0; i < 2; ++i) {
    check_sums(out[i], grad, operands[i], order, shape, shape.columns[i], dtype);
    check_sums(bias[i], grad, ones, order, shape, 1, dtype);
    args.weight[i].grad_weight = other[i].data();
    args.grad_bias[i] = other_bias[i].data();
  }
  for (const auto& pools : {serial_pools(), threaded_pools()}) {
    for (const Pool& pool : pools) {
      const Scope scope(pool.name);
      for (Array& array : other) array.fill_canary();
      for (Array& array : other_bias) array.fill_canary();
      cpu::weight_gradient(args, isa, pool.parallel);
      for (int i = 0; i < 2; ++i) CHECK(other[i].same_bits(out[i]));
      for (int i = 0; i < 2; ++i) CHECK(other_bias[i].same_bits(bias[i]));
    }
  }
}

// Samples whose rows begin at `first`: as by a call for each of them.
void check_samples(const std::vector<int64_t>& first, DType dtype, cpu::Isa isa) {
  constexpr int64_t kColumns = 37, kGradColumns = 52;
  const int64_t samples = static_cast<int64_t>(first.size()) - 1, rows = first.back();
  Random random(23);
  const Array grad = Array::input(dtype, random.uniform(rows * kGradColumns, 1, dtype));
  const Array operand = Array::input(dtype, random.uniform(rows * kColumns, 1, dtype));
  const std::vector<const void*> grads = rows_of(grad, rows, kGradColumns);
  const std::vector<const void*> operands = rows_of(operand, rows, kColumns);
  Array weights(dtype, samples * kGradColumns * kColumns), biases(dtype, samples * kGradColumns);
  Array second(dtype, samples * kGradColumns);
  cpu::WeightGradientArgs args;
  args.dtype = dtype;
  args.rows = rows;
  args.grads = grads.data();
  args.grad_columns = kGradColumns;
  args.weight[0] = {operands.data(), kColumns, weights.data()};
  args.grad_bias[0] = biases.data();
  args.grad_bias[1] = second.data();
  for (const auto& pools : {serial_pools(), threaded_pools()}) {
    for (const Pool& pool : pools) {
      const Scope scope(samples, " samples, ", pool.name);
      for (Array* array : {&weights, &biases, &second}) array->fill_canary();
      cpu::sample_weight_gradients(args, samples, first.data(), isa, pool.parallel);
      CHECK(second.same_bits(biases));
      for (int64_t b = 0; b < samples; ++b) {
        Array weight(dtype, kGradColumns * kColumns), bias[2];
        cpu::WeightGradientArgs own = args;
        own.rows = first[b + 1] - first[b];
        own.grads += first[b];
        own.weight[0] = {operands.data() + first[b], kColumns, weight.data()};
        for (int i = 0; i < 2; ++i) {
          bias[i] = Array(dtype, kGradColumns);
          own.grad_bias[i] = bias[i].data();
        }
        cpu::weight_gradient(own, isa, kOneThread.parallel);
        for (int64_t c = 0; c < kGradColumns * kColumns; ++c) {
          CHECK(weights.get(b * kGradColumns * kColumns + c) == weight.get(c));
        }
        for (int64_t c = 0; c < kGradColumns; ++c) {
          CHECK(biases.get(b * kGradColumns + c) == bias[0].get(c));
        }
      }
    }
  }
}

// A long sum of numbers of one sign: as exact as sums of blocks are. One after the
// other they would be off by some 40 roundings.
void check_long_sum(cpu::Isa isa) {
  constexpr int64_t kRows = 20000, kColumns = 800;
  Random random(22);
  Values ones(kRows * kColumns, 1), operand = random.uniform(kRows, 1, DType::kFloat32);
  const Array grad = Array::input(DType::kFloat32, ones);
  double truth = 0;
  for (double& value : operand) truth += value = std::fabs(value);
  const Array operands = Array::input(DType::kFloat32, operand);
  const std::vector<const void*> pointers = rows_of(operands, kRows, 1);
  const std::vector<const void*> grads = rows_of(grad, kRows, kColumns);
  Array out(DType::kFloat32, kColumns);
  cpu::WeightGradientArgs args;
  args.rows = kRows;
  args.grads = grads.data();
  args.grad_columns = kColumns;
  args.weight[0] = {pointers.data(), 1, out.data()};
  cpu::weight_gradient(args, isa, kOneThread.parallel);
  for (int64_t c = 0; c < kColumns; ++c) {
    CHECK_LE(std::fabs(out.get(c) - truth), 16 * 0x1p-23 * truth);
  }
}

void run_all() {
  for (cpu::Isa isa : cpu::available_isas()) check_long_sum(isa);
  for (DType dtype : kDTypes) {
    for (cpu::Isa isa : cpu::available_isas()) {
      // Several rows, one, and none.
      check_samples({0, 300, 300, 301, 340, 340}, dtype, isa);
      // More than 10^6 multiply-adds in each sample: all threads work on one sample, or, where
      // there are no more of them than samples, one thread on each.
      check_samples({0, 600, 1200}, dtype, isa);
      for (const Shape& shape : kShapes) {
        const Scope scope(cpu::isa_name(isa), ", ", dtype_name(dtype), ", M=", shape.rows,
                          " C=", shape.grad_columns);
        check_shape_of(shape, dtype, isa);
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
