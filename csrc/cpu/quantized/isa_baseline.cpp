// SPDX-License-Identifier: BSD-3-Clause
#define LSTM_ISA baseline
#include "cpu/quantized/kernels-inl.h"
