// SPDX-License-Identifier: BSD-3-Clause
// From what the backward's steps have added up for each row to the gradients that the caller gets.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/types.h"

namespace lstm_fused::cuda {

// out (columns) storage = Σ over rows of sums (rows, columns) accumulators, in a fixed order;
// `twin` gets the same; either may be null.
void sum_rows(DType dtype, const void* sums, int64_t rows, int64_t columns, void* out, void* twin,
              cudaStream_t stream);

// out storage = values, accumulators; nothing where out is null.
void round_values(DType dtype, const void* values, int64_t count, void* out, cudaStream_t stream);

}  // namespace lstm_fused::cuda
