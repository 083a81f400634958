// SPDX-License-Identifier: BSD-3-Clause
// What the processor can do, and what the user allows.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cpu/kernels/kernels.h"

namespace lstm_fused::cpu {

struct CpuFacts {
  Isa isa = Isa::kBaseline;  // the best that may be used
  int threads = 1;
  int64_t l2_bytes = 1 << 20;  // a core's own cache
  bool vnni = false;           // byte products of the width of `isa` may be used
};

// "baseline", "avx2", "avx512", "avx512_bf16".
const char* isa_name(Isa isa);

// Instruction sets that this build holds and this processor runs, in rising order.
std::vector<Isa> available_isas();

// The best available one, or the best up to the name that LSTM_FUSED_MAX_ISA had when this library
// was loaded. Throws Error when the variable named none.
Isa best_isa();

// Allows instruction sets up to the named one, or "any", in the variable's place; gives the name
// before. Throws Error for another name. For tests, which switch within a process.
std::string set_max_isa(const std::string& name);

CpuFacts cpu_facts(int threads);

const KernelTable& kernel_table(Isa isa, DType dtype);

}  // namespace lstm_fused::cpu
