// SPDX-License-Identifier: BSD-3-Clause
// Matrices that the lanes of a warp hold together: ldmatrix, stmatrix and mma.
//
// Products are exact and their sum is formed in double, then rounded once to the accumulator's
// type. A tensor core rounds, or truncates, along the way: results agree to the last bits only.
#include <cstring>

#include "floating.h"
#include "machine.h"

namespace cuda_on_cpu {

namespace {

template <class T>
T word_of(const char* at, uint32_t i) {
  T value;
  memcpy(&value, at + i * sizeof value, sizeof value);
  return value;
}

const char* row_of(const Exchange& exchange, uint32_t matrix, uint32_t row) {
  return word_of<const char*>(exchange.in[8 * matrix + row], 0);
}

// Lane l holds elements (l/4, 2·(l%4)) and the next of each matrix; transposed, those of its
// transpose. Returns row and column of element i of the two.
struct Place {
  uint32_t row, column;
};
Place place_of(uint32_t lane, uint32_t i, bool transpose) {
  const uint32_t row = lane / 4, column = lane % 4 * 2 + i;
  return transpose ? Place{column, row} : Place{row, column};
}

constexpr uint32_t kTranspose = 16;

void compute_load(Exchange& exchange, uint32_t, uint32_t argument) {
  for (uint32_t lane = 0; lane < 32; ++lane) {
    for (uint32_t matrix = 0; matrix < argument % kTranspose; ++matrix) {
      for (uint32_t i = 0; i < 2; ++i) {
        const Place place = place_of(lane, i, argument & kTranspose);
        const char* from = row_of(exchange, matrix, place.row) + 2 * place.column;
        memcpy(exchange.out[lane] + 4 * matrix + 2 * i, from, 2);
      }
    }
  }
}

struct StoreInput {
  char* at;
  uint32_t words[4];
};

void compute_store(Exchange& exchange, uint32_t, uint32_t argument) {
  for (uint32_t lane = 0; lane < 32; ++lane) {
    for (uint32_t matrix = 0; matrix < argument % kTranspose; ++matrix) {
      for (uint32_t i = 0; i < 2; ++i) {
        const Place place = place_of(lane, i, argument & kTranspose);
        char* to = const_cast<char*>(row_of(exchange, matrix, place.row)) + 2 * place.column;
        memcpy(to, exchange.in[lane] + sizeof(char*) + 4 * matrix + 2 * i, 2);
      }
    }
  }
}

// The fragments of mma. Lane l is row (or column) l/4 of its group of four lanes, t = l%4.
struct Fragments {
  uint32_t a[4], b[2], c[4];
};

struct Shape {
  uint32_t m, k, a_words, b_words, cd_words;
};

Shape shape_of(Mma mma) {
  switch (mma) {
    case Mma::k16816Bf16:
    case Mma::k16816F16:
      return {16, 16, 4, 2, 4};
    case Mma::k1688Bf16:
    case Mma::k1688F16:
      return {16, 8, 2, 1, 4};
    case Mma::k1688Tf32:
      return {16, 8, 4, 2, 4};
    case Mma::k1684Tf32:
      return {16, 4, 2, 1, 4};
    default:
      return {8, 4, 2, 2, 4};
  }
}

struct Operands {
  double a[16][16], b[16][8], c[16][8];
};

double half_of(uint32_t words, uint32_t i, bool is_bf16) {
  const auto word = static_cast<uint16_t>(words >> (16 * i));
  return is_bf16 ? to_float(bf16{word}) : to_float(f16{word});
}

// 16-bit A: register r holds rows g + 8·(r%2), columns 2t + 8·(r/2) and the next. B: register r
// holds rows 2t + 8r and the next of column g.
void gather_halves(const Exchange& exchange, const Shape& shape, bool is_bf16, Operands& all) {
  for (uint32_t lane = 0; lane < 32; ++lane) {
    const auto x = word_of<Fragments>(exchange.in[lane], 0);
    const uint32_t g = lane / 4, t = lane % 4;
    for (uint32_t i = 0; i < 2; ++i) {
      for (uint32_t r = 0; r < shape.a_words; ++r) {
        all.a[g + 8 * (r % 2)][2 * t + 8 * (r / 2) + i] = half_of(x.a[r], i, is_bf16);
      }
      for (uint32_t r = 0; r < shape.b_words; ++r) {
        all.b[2 * t + 8 * r + i][g] = half_of(x.b[r], i, is_bf16);
      }
    }
  }
}

// TF32: A's register r holds row g + 8·(r%2), column t + 4·(r/2); B's row t + 4r, column g. The
// hardware does not look at the 13 low bits.
void gather_tf32(const Exchange& exchange, const Shape& shape, Operands& all) {
  constexpr uint32_t kMask = ~0x1fffu;
  for (uint32_t lane = 0; lane < 32; ++lane) {
    const auto x = word_of<Fragments>(exchange.in[lane], 0);
    const uint32_t g = lane / 4, t = lane % 4;
    for (uint32_t r = 0; r < shape.a_words; ++r) {
      all.a[g + 8 * (r % 2)][t + 4 * (r / 2)] = as<float>(x.a[r] & kMask);
    }
    for (uint32_t r = 0; r < shape.b_words; ++r) all.b[t + 4 * r][g] = as<float>(x.b[r] & kMask);
  }
}

void multiply_f32(Exchange& exchange, const Shape& shape, Operands& all) {
  for (uint32_t lane = 0; lane < 32; ++lane) {
    const auto x = word_of<Fragments>(exchange.in[lane], 0);
    for (uint32_t r = 0; r < 4; ++r) {
      all.c[lane / 4 + 8 * (r / 2)][2 * (lane % 4) + r % 2] = as<float>(x.c[r]);
    }
  }
  for (uint32_t i = 0; i < 16; ++i) {
    for (uint32_t k = 0; k < shape.k; ++k) {
      for (uint32_t j = 0; j < 8; ++j) all.c[i][j] += all.a[i][k] * all.b[k][j];
    }
  }
  for (uint32_t lane = 0; lane < 32; ++lane) {
    for (uint32_t r = 0; r < 4; ++r) {
      const auto sum = static_cast<float>(all.c[lane / 4 + 8 * (r / 2)][2 * (lane % 4) + r % 2]);
      memcpy(exchange.out[lane] + 4 * r, &sum, sizeof sum);
    }
  }
}

// One lane holds A(g, t), B(t, g) and C(g, 2t), C(g, 2t + 1).
void multiply_f64(Exchange& exchange) {
  for (uint32_t lane = 0; lane < 32; ++lane) {
    const uint32_t g = lane / 4, t = lane % 4;
    for (uint32_t i = 0; i < 2; ++i) {
      double sum = word_of<double>(exchange.in[lane] + offsetof(Fragments, c), i);
      for (uint32_t k = 0; k < 4; ++k) {
        const double a = word_of<double>(exchange.in[4 * g + k] + offsetof(Fragments, a), 0);
        const char* column = exchange.in[4 * (2 * t + i) + k];
        sum = fused(a, word_of<double>(column + offsetof(Fragments, b), 0), sum);
      }
      memcpy(exchange.out[lane] + 8 * i, &sum, sizeof sum);
    }
  }
}

void compute_mma(Exchange& exchange, uint32_t, uint32_t argument) {
  const Mma mma = static_cast<Mma>(argument);
  const Shape shape = shape_of(mma);
  Operands all;
  switch (mma) {
    case Mma::k884F64:
      return multiply_f64(exchange);
    case Mma::k1688Tf32:
    case Mma::k1684Tf32:
      gather_tf32(exchange, shape, all);
      break;
    default:
      gather_halves(exchange, shape, mma == Mma::k16816Bf16 || mma == Mma::k1688Bf16, all);
  }
  multiply_f32(exchange, shape, all);
}

void check_row(ThreadState& th, const char* at, uint32_t kind, uint32_t site) {
  if (at != nullptr && (grid->race || grid->statistics)) on_access(th, at, 16, kind, site);
  const Warp& warp = self(th).block->warps[th.warp];
  if (warp.live != ~0u) {
    fail(th, cudaErrorLaunchFailure, "a matrix instruction in a warp of fewer than 32 lanes", site);
  }
}

}  // namespace

void load_matrix(ThreadState& th, uint32_t* out, uint32_t count, bool transpose, const char* at,
                 uint32_t site) {
  check_row(th, at, kRead, site);
  const uint32_t argument = count + (transpose ? kTranspose : 0);
  const Exchange& exchange =
      exchange_lanes(th, ~0u, "ldmatrix", &at, sizeof at, compute_load, argument, site);
  memcpy(out, exchange.out[th.lane], 4 * count);
}

void store_matrix(ThreadState& th, const uint32_t* in, uint32_t count, bool transpose, char* at,
                  uint32_t site) {
  check_row(th, at, kWrite, site);
  const uint32_t argument = count + (transpose ? kTranspose : 0);
  StoreInput input = {at, {}};
  memcpy(input.words, in, 4 * count);
  exchange_lanes(th, ~0u, "stmatrix", &input, sizeof input, compute_store, argument, site);
}

void mma(ThreadState& th, Mma form, uint32_t* d, const uint32_t* a, const uint32_t* b,
         const uint32_t* c, uint32_t site) {
  check_row(th, nullptr, kRead, site);
  const Shape shape = shape_of(form);
  Fragments fragments = {};
  memcpy(fragments.a, a, 4 * shape.a_words);
  memcpy(fragments.b, b, 4 * shape.b_words);
  memcpy(fragments.c, c, 4 * shape.cd_words);
  const auto argument = static_cast<uint32_t>(form);
  const Exchange& exchange =
      exchange_lanes(th, ~0u, "mma", &fragments, sizeof fragments, compute_mma, argument, site);
  memcpy(d, exchange.out[th.lane], 4 * shape.cd_words);
}

}  // namespace cuda_on_cpu
