// SPDX-License-Identifier: BSD-3-Clause
// Arithmetic without denormal numbers, for as long as a kernel runs.
#pragma once

#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lstm_fused::cpu {

// While it lives, its thread takes denormal operands as zero and gives zero for denormal results;
// then the thread's control register is as it was.
//
// A closed gate makes products that underflow, in every lane and step. A processor needs some
// hundred cycles for an instruction that meets a denormal number; zeros cost nothing.
// NOTE: a new thread inherits the register. So none may live where a thread pool is called, which
// may start its threads at any call: they would flush the denormals of other programs for ever.
class FlushDenormals {
 public:
  FlushDenormals() : saved_(read()) {
    if ((saved_ & kFlush) != kFlush) write(saved_ | kFlush);
  }
  ~FlushDenormals() {
    if ((saved_ & kFlush) != kFlush) write(saved_);
  }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
#if defined(__x86_64__)
  using Register = unsigned int;              // MXCSR
  static constexpr Register kFlush = 0x8040;  // results and operands
  static Register read() { return _mm_getcsr(); }
  static void write(Register value) { _mm_setcsr(value); }
#elif defined(__aarch64__)
  using Register = uint64_t;                   // FPCR
  static constexpr Register kFlush = 1 << 24;  // both; 16-bit formats stay as they are
  static Register read() {
    Register value;
    __asm__ volatile("mrs %0, fpcr" : "=r"(value));
    return value;
  }
  static void write(Register value) { __asm__ volatile("msr fpcr, %0" : : "r"(value) : "memory"); }
#else
  using Register = int;
  static constexpr Register kFlush = 0;
  static Register read() { return 0; }
  static void write(Register) {}
#endif

  const Register saved_;
};

}  // namespace lstm_fused::cpu
