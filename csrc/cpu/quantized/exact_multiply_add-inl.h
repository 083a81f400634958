// SPDX-License-Identifier: BSD-3-Clause
// a·b + c, rounded once whatever the instruction set: the cell over int8 weights must have the same
// bits on all of them. Included into a namespace after vec-inl.h and multiply_add-inl.h.

#if defined(__AVX512F__) || defined(__FMA__) || defined(__aarch64__)
LSTM_INLINE VecF exact_multiply_add(VecF a, VecF b, VecF c) { return multiply_add(a, b, c); }
#else
// By double precision, in which the product of two floats is exact. The sum is rounded to odd: of
// the two doubles next to it, it becomes the one whose last bit is 1, so that rounding it to a
// float gives what rounding the exact sum would (Boldo & Melquiond 2008).
LSTM_INLINE VecF exact_multiply_add(VecF a, VecF b, VecF c) {
  typedef double Wide __attribute__((vector_size(2 * kVectorBytes)));
  typedef int64_t Bits __attribute__((vector_size(2 * kVectorBytes)));
  typedef uint64_t Unsigned __attribute__((vector_size(2 * kVectorBytes)));
  const Wide product = __builtin_convertvector(a, Wide) * __builtin_convertvector(b, Wide);
  const Wide addend = __builtin_convertvector(c, Wide);
  const Wide sum = product + addend;

  // What the sum lacks (Knuth 1969): NaN beside infinity, for which both comparisons are false.
  const Wide of_addend = sum - product;
  const Wide lacking = (product - (sum - of_addend)) + (addend - of_addend);
  const Bits inexact = (lacking < 0.0) | (lacking > 0.0);
  // All ones, -1, where the sum's magnitude is too large.
  // NOTE: casts, since bit_cast would take vectors that the instruction set's calls do not pass.
  const Bits bits = (Bits)sum;
  const Bits too_large = (bits ^ (Bits)lacking) >> 63;
  const Bits odd = (Bits)((Unsigned)bits + (Unsigned)too_large) | 1;  // -0.0 would overflow
  const Bits rounded = (odd & inexact) | (bits & ~inexact);
  return __builtin_convertvector((Wide)rounded, VecF);
}
#endif
