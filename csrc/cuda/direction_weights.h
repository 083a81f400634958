// SPDX-License-Identifier: BSD-3-Clause
// The products of both directions as one batched product.
//
// cuBLAS takes a batch as a first matrix and a stride that is not negative. But the directions run
// through time the opposite ways, so that now the one's rows lie first in memory, now the other's.
// The direction whose rows lie first is the batch's element 0, and the weights are laid out to
// serve either order: forward, reverse, forward.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/lstm.h"
#include "cuda/status.h"

namespace lstm_fused::cuda {

inline void* advance(void* array, int64_t elements, int64_t element_bytes) {
  return array == nullptr ? nullptr : static_cast<char*>(array) + elements * element_bytes;
}
inline const void* advance(const void* array, int64_t elements, int64_t element_bytes) {
  return array == nullptr ? nullptr : static_cast<const char*>(array) + elements * element_bytes;
}

// Which direction is element 0, and how far behind it the other one lies.
struct DirectionOrder {
  int first = 0;
  int64_t stride = 0;  // elements

  int element(int direction) const { return direction ^ first; }
};

inline DirectionOrder direction_order(const void* const* rows, int directions,
                                      int64_t element_bytes) {
  if (directions == 1) return {};
  const int64_t bytes = static_cast<const char*>(rows[1]) - static_cast<const char*>(rows[0]);
  return {bytes < 0 ? 1 : 0, (bytes < 0 ? -bytes : bytes) / element_bytes};
}

// One weight of each direction, of the same size.
class DirectionWeights {
 public:
  // `copies` has room for three of them, where there are two directions; `elements` of storage.
  DirectionWeights(const void* const* weights, int directions, int64_t elements, DType dtype,
                   void* copies, cudaStream_t stream)
      : bytes_(elements * dtype_size(dtype)) {
    if (directions == 1) {
      first_ = weights[0];
      return;
    }
    for (int i = 0; i < 3; ++i) {
      check_cuda(cudaMemcpyAsync(advance(copies, i, bytes_), weights[i % 2], bytes_,
                                 cudaMemcpyDeviceToDevice, stream),
                 "cudaMemcpyAsync");
    }
    first_ = copies;
  }

  // The weight of the order's element 0; that of element 1 lies behind it.
  const void* from(const DirectionOrder& order) const {
    return advance(first_, order.first, bytes_);
  }

 private:
  const void* first_ = nullptr;
  int64_t bytes_;
};

}  // namespace lstm_fused::cuda
