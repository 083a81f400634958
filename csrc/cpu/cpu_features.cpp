// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/cpu_features.h"

#include <unistd.h>

#include <algorithm>

#include "common/setting.h"

namespace lstm_fused::cpu {
namespace {

constexpr Isa kIsas[] = {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16};

// "any", and then the name of each.
Setting max_isa("LSTM_FUSED_MAX_ISA",
                {"any", isa_name(kIsas[0]), isa_name(kIsas[1]), isa_name(kIsas[2]),
                 isa_name(kIsas[3])},
                "baseline, avx2, avx512 or avx512_bf16");

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "baseline";
  }
}

std::vector<Isa> available_isas() {
  std::vector<Isa> isas = {Isa::kBaseline};
#if defined(LSTM_X86)
  // NOTE: the compiler's builtin also asks whether the system saves the wide registers.
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
      !__builtin_cpu_supports("f16c")) {
    return isas;
  }
  isas.push_back(Isa::kAvx2);
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq")) {
    return isas;
  }
  isas.push_back(Isa::kAvx512);
  if (__builtin_cpu_supports("avx512bf16")) isas.push_back(Isa::kAvx512Bf16);
#endif
  return isas;
}

Isa best_isa() {
  static const Isa best = available_isas().back();
  const int limit = max_isa.index();
  return limit == 0 ? best : std::min(kIsas[limit - 1], best);
}

namespace {

// Whether the processor has byte products, for AVX-512 where it has that, else for AVX2.
bool has_vnni() {
#if defined(LSTM_X86)
  __builtin_cpu_init();
  if (available_isas().back() >= Isa::kAvx512) return __builtin_cpu_supports("avx512vnni");
#if defined(LSTM_AVX_VNNI)
  return available_isas().back() == Isa::kAvx2 && __builtin_cpu_supports("avxvnni");
#endif
#endif
  return false;
}

// "avx512" and what is below are sets without them.
bool allows_vnni() {
  const int limit = max_isa.index();
  return limit == 0 || kIsas[limit - 1] > Isa::kAvx512;
}

}  // namespace

std::string set_max_isa(const std::string& name) { return max_isa.set(name); }

CpuFacts cpu_facts(int threads) {
  static const int64_t l2_bytes = [] {
#if defined(_SC_LEVEL2_CACHE_SIZE)
    const int64_t bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (bytes > 0) return bytes;
#endif
    return CpuFacts().l2_bytes;
  }();
  static const bool vnni = has_vnni();
  return {best_isa(), threads, l2_bytes, vnni && allows_vnni()};
}

const KernelTable& kernel_table(Isa isa, DType dtype) {
  switch (isa) {
#if defined(LSTM_X86)
    case Isa::kAvx512Bf16:
      return avx512_bf16::kernels(dtype);
    case Isa::kAvx512:
      return avx512::kernels(dtype);
    case Isa::kAvx2:
      return avx2::kernels(dtype);
#endif
    default:
      return baseline::kernels(dtype);
  }
}

}  // namespace lstm_fused::cpu
