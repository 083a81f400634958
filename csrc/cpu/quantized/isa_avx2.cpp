// SPDX-License-Identifier: BSD-3-Clause
#define LSTM_ISA avx2
#include "cpu/quantized/kernels-inl.h"
