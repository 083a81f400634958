// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/direction_weights.h"

#include "cuda/status.h"

namespace lstm_fused::cuda {
namespace {

const void* stack(const void* const* weights, int directions, int64_t elements, DType dtype,
                  void* space, cudaStream_t stream) {
  if (directions == 1) return weights[0];
  for (int i = 0; i < directions; ++i) {
    check_cuda(cudaMemcpyAsync(advance(space, i * elements, dtype_size(dtype)), weights[i],
                               elements * dtype_size(dtype), cudaMemcpyDeviceToDevice, stream),
               "cudaMemcpyAsync");
  }
  return space;
}

}  // namespace

RecurrentWeights recurrent_weights(const LstmShape& shape, DType dtype, const void* const* w_hh,
                                   const void* const* w_hr, bool composite, void* w_hh_space,
                                   void* w_hr_space, cudaStream_t stream, const Blas& blas) {
  const int64_t gates = kGates * shape.hidden_size;
  RecurrentWeights weights;
  if (!composite) {
    weights.columns = shape.output_size;
    weights.w_hh =
        stack(w_hh, shape.directions, gates * shape.output_size, dtype, w_hh_space, stream);
    if (shape.projection) {
      weights.w_hr = stack(w_hr, shape.directions, shape.output_size * shape.hidden_size, dtype,
                           w_hr_space, stream);
    }
    return weights;
  }

  // NOTE: rounded to the storage type, as h between the two products would be. float16 ends at
  // 65504, which a product of these reaches with weights above 8 at P = 1024, and no sooner.
  for (int i = 0; i < shape.directions; ++i) {
    Gemm gemm;
    gemm.m = gates;
    gemm.n = shape.hidden_size;
    gemm.k = shape.output_size;
    gemm.a = {w_hh[i], shape.output_size};
    gemm.b = {w_hr[i], shape.hidden_size};
    gemm.c = advance(w_hh_space, i * gates * shape.hidden_size, dtype_size(dtype));
    gemm.c_stride = shape.hidden_size;
    blas.gemm(gemm);
  }
  weights.w_hh = w_hh_space;
  weights.columns = shape.hidden_size;
  return weights;
}

}  // namespace lstm_fused::cuda
