// SPDX-License-Identifier: BSD-3-Clause
#define LSTM_ISA avx512_vnni
#include "cpu/quantized/kernels-inl.h"
