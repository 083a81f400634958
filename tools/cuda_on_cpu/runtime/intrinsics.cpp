// SPDX-License-Identifier: BSD-3-Clause
// Small services to translated code: clocks, the end of a thread in error, directed rounding.
#include <cfenv>
#include <cmath>

#include "device.h"
#include "machine.h"

namespace cuda_on_cpu {

void unsupported(ThreadState& th, uint32_t site) {
  fail(th, cudaErrorIllegalInstruction, "an instruction that is not emulated", site);
}

void trap(ThreadState& th, uint32_t site) { fail(th, cudaErrorLaunchFailure, "trap", site); }

void assert_failed(ThreadState& th, const char* message, const char* file, uint32_t line,
                   const char* function) {
  fail(th, cudaErrorAssert,
       std::string("assertion '") + message + "' failed at " + file + ":" + std::to_string(line) +
           ", in " + function);
}

// Time goes by as threads run; it never stands still.
uint64_t clock(ThreadState&) { return 16 * ++grid->switches; }

uint64_t nanoseconds(ThreadState&) {
  ++grid->switches;
  return static_cast<uint64_t>(device().nanoseconds) + grid->nanoseconds();
}

uint32_t sm_id(ThreadState& th) {
  return self(th).block->index % static_cast<uint32_t>(device().sm_count);
}

uint32_t sm_count(ThreadState&) { return static_cast<uint32_t>(device().sm_count); }

uint64_t grid_workspace(ThreadState&) { return reinterpret_cast<uint64_t>(grid->workspace); }

namespace {

int mode_of(Rounding rounding) {
  switch (rounding) {
    case Rounding::kZero:
      return FE_TOWARDZERO;
    case Rounding::kDown:
      return FE_DOWNWARD;
    case Rounding::kUp:
      return FE_UPWARD;
    default:
      return FE_TONEAREST;
  }
}

// Sets the processor's rounding for as long as it lives. Operands and results pass through volatile
// variables, so that no operation moves out of its life.
class RoundingMode {
 public:
  explicit RoundingMode(Rounding rounding) { fesetround(mode_of(rounding)); }
  ~RoundingMode() { fesetround(FE_TONEAREST); }
  RoundingMode(const RoundingMode&) = delete;
  RoundingMode& operator=(const RoundingMode&) = delete;
};

template <class R, class F, class... Args>
R rounded(Rounding rounding, F operation, Args... args) {
  const RoundingMode mode(rounding);
  volatile R result =
      operation([](volatile Args& x) -> Args { return x; }(const_cast<volatile Args&>(args))...);
  return result;
}

template <class T>
T add(T a, T b, Rounding r) {
  return rounded<T>(r, [](T x, T y) { return x + y; }, a, b);
}
template <class T>
T mul(T a, T b, Rounding r) {
  return rounded<T>(r, [](T x, T y) { return x * y; }, a, b);
}
template <class T>
T div(T a, T b, Rounding r) {
  return rounded<T>(r, [](T x, T y) { return x / y; }, a, b);
}
template <class T>
T root(T a, Rounding r) {
  return rounded<T>(r, [](T x) { return std::sqrt(x); }, a);
}
template <class T>
T fused_sum(T a, T b, T c, Rounding r) {
  return rounded<T>(r, [](T x, T y, T z) { return std::fma(x, y, z); }, a, b, c);
}
template <class T, class S>
T convert(S value, Rounding r) {
  return rounded<T>(r, [](S x) { return static_cast<T>(x); }, value);
}

}  // namespace

float add_rounded(float a, float b, Rounding r) { return add(a, b, r); }
double add_rounded(double a, double b, Rounding r) { return add(a, b, r); }
float mul_rounded(float a, float b, Rounding r) { return mul(a, b, r); }
double mul_rounded(double a, double b, Rounding r) { return mul(a, b, r); }
float div_rounded(float a, float b, Rounding r) { return div(a, b, r); }
double div_rounded(double a, double b, Rounding r) { return div(a, b, r); }
float sqrt_rounded(float a, Rounding r) { return root(a, r); }
double sqrt_rounded(double a, Rounding r) { return root(a, r); }
float fma_rounded(float a, float b, float c, Rounding r) { return fused_sum(a, b, c, r); }
double fma_rounded(double a, double b, double c, Rounding r) { return fused_sum(a, b, c, r); }
float to_float_rounded(double value, Rounding r) { return convert<float>(value, r); }
float to_float_rounded(int64_t value, Rounding r) { return convert<float>(value, r); }
float to_float_rounded(uint64_t value, Rounding r) { return convert<float>(value, r); }
double to_double_rounded(int64_t value, Rounding r) { return convert<double>(value, r); }
double to_double_rounded(uint64_t value, Rounding r) { return convert<double>(value, r); }

}  // namespace cuda_on_cpu
