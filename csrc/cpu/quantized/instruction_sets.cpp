// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/quantized/kernels.h"

namespace lstm_fused::cpu::quantized {

const char* quantized_isa_name(QuantizedIsa isa) {
  switch (isa) {
    case QuantizedIsa::kAvx512Vnni:
      return "avx512_vnni";
    case QuantizedIsa::kAvx512:
      return "avx512";
    case QuantizedIsa::kAvxVnni:
      return "avx_vnni";
    case QuantizedIsa::kAvx2:
      return "avx2";
    default:
      return "baseline";
  }
}

std::vector<QuantizedIsa> available_quantized_isas() {
  std::vector<QuantizedIsa> isas = {QuantizedIsa::kBaseline};
#if defined(LSTM_X86)
  const Isa best = available_isas().back();
  if (best >= Isa::kAvx2) isas.push_back(QuantizedIsa::kAvx2);
#if defined(LSTM_AVX_VNNI)
  if (best >= Isa::kAvx2 && __builtin_cpu_supports("avxvnni")) {
    isas.push_back(QuantizedIsa::kAvxVnni);
  }
#endif
  if (best >= Isa::kAvx512) isas.push_back(QuantizedIsa::kAvx512);
  if (best >= Isa::kAvx512 && __builtin_cpu_supports("avx512vnni")) {
    isas.push_back(QuantizedIsa::kAvx512Vnni);
  }
#endif
  return isas;
}

QuantizedIsa quantized_isa(const CpuFacts& facts) {
  switch (facts.isa) {
    case Isa::kAvx512Bf16:
    case Isa::kAvx512:
      return facts.vnni ? QuantizedIsa::kAvx512Vnni : QuantizedIsa::kAvx512;
    case Isa::kAvx2:
      return facts.vnni ? QuantizedIsa::kAvxVnni : QuantizedIsa::kAvx2;
    default:
      return QuantizedIsa::kBaseline;
  }
}

const QuantizedTable& quantized_table(QuantizedIsa isa, WeightType type) {
  switch (isa) {
#if defined(LSTM_X86)
    case QuantizedIsa::kAvx512Vnni:
      return avx512_vnni::kernels(type);
    case QuantizedIsa::kAvx512:
      return avx512::kernels(type);
    case QuantizedIsa::kAvxVnni:
      return avx_vnni::kernels(type);
    case QuantizedIsa::kAvx2:
      return avx2::kernels(type);
#endif
    default:
      return baseline::kernels(type);
  }
}

}  // namespace lstm_fused::cpu::quantized
