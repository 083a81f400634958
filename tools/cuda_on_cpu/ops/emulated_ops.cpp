// SPDX-License-Identifier: BSD-3-Clause
// The CUDA ops on the emulated device: torch.ops.<LSTM_EMULATED_OPS>.* on CPU tensors. In place of
// csrc/torch/register_cuda.cpp and new_tensor.cpp.
//
// An op moves its arguments into the device's memory, as a copy of exactly their size, and all that
// it allocates lies there; so a kernel that reads or writes anything else is found out.
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "cuda/availability.h"
#include "cuda/first_use/check.h"
#include "cuda/persistent/wait_failure.h"
#include "cuda/plan.h"
#include "cuda/status.h"
#include "torch/cuda_context.h"
#include "torch/ops_cuda.h"
#include "torch/schemas.h"
#include "torch/warning.h"

#define LSTM_EXPORT extern "C" __attribute__((visibility("default")))

extern "C" int cublasCreate_v2(void** handle);
extern "C" int cublasSetStream_v2(void* handle, cudaStream_t stream);

namespace lstm_fused {
namespace {

// Elements between a boundary of allocation and a tensor's first one; not for a workspace, which
// torch aligns.
int offset = 0;

// The stream that calls run on.
cudaStream_t stream = nullptr;

// What is called once before memory is next taken for a workspace, as another thread might call;
// null: nothing.
void (*before_workspace)() = nullptr;

// What the ops have warned of, since it was last asked for.
std::string warnings;

void* blas_handle() {
  static void* const handle = [] {
    void* created = nullptr;
    LSTM_CHECK(cublasCreate_v2(&created) == 0, "the emulated cuBLAS must give a handle");
    return created;
  }();
  return handle;
}

Tensor to_device(const Tensor& tensor) {
  const Tensor from = to_contiguous(tensor, "an argument");
  const int64_t bytes = from.numel() * element_bytes(from.scalar_type());
  const Tensor to = [&] {
    const auto sizes = from.sizes();
    switch (from.dim()) {
      case 1:
        return new_tensor({sizes[0]}, from.scalar_type(), device_of(from));
      case 2:
        return new_tensor({sizes[0], sizes[1]}, from.scalar_type(), device_of(from));
      default:
        return new_tensor({sizes[0], sizes[1], sizes[2]}, from.scalar_type(), device_of(from));
    }
  }();
  if (bytes > 0) std::memcpy(to.mutable_data_ptr(), from.const_data_ptr(), bytes);
  return to;
}

std::optional<Tensor> to_device(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional<Tensor>(to_device(*tensor)) : std::nullopt;
}

std::vector<Tensor> to_device(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> moved;
  for (const Tensor& tensor : tensors) moved.push_back(to_device(tensor));
  return moved;
}

ForwardResult lstm_forward_emulated(const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                                    const std::vector<Tensor>& weights,
                                    const std::optional<Tensor>& lengths,
                                    const std::optional<Tensor>& batch_sizes,
                                    const std::optional<Tensor>& reset_mask, bool save_for_backward,
                                    bool return_cell_states, bool recompute) {
  return lstm_forward_cuda(to_device(input), to_device(h_0), to_device(c_0), to_device(weights),
                           to_device(lengths), batch_sizes, to_device(reset_mask),
                           save_for_backward, return_cell_states, recompute);
}

BackwardResult lstm_backward_emulated(
    const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_h_n,
    const std::optional<Tensor>& grad_c_n, const std::optional<Tensor>& grad_cell_states,
    const Tensor& input, const Tensor& h_0, const Tensor& c_0, const std::vector<Tensor>& weights,
    const std::optional<Tensor>& lengths, const std::optional<Tensor>& batch_sizes,
    const std::optional<Tensor>& reset_mask, const Tensor& y, const Tensor& gates,
    const Tensor& cells, bool need_input, bool need_states, bool need_weights) {
  return lstm_backward_cuda(to_device(grad_y), to_device(grad_h_n), to_device(grad_c_n),
                            to_device(grad_cell_states), to_device(input), to_device(h_0),
                            to_device(c_0), to_device(weights), to_device(lengths), batch_sizes,
                            to_device(reset_mask), to_device(y), to_device(gates), to_device(cells),
                            need_input, need_states, need_weights);
}

BackwardResult lstm_sample_gradients_emulated(
    const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_h_n,
    const std::optional<Tensor>& grad_c_n, const std::optional<Tensor>& grad_cell_states,
    const Tensor& input, const Tensor& h_0, const Tensor& c_0, const std::vector<Tensor>& weights,
    const std::optional<Tensor>& lengths, const std::optional<Tensor>& batch_sizes,
    const std::optional<Tensor>& reset_mask, const Tensor& y, const Tensor& gates,
    const Tensor& cells, bool need_input, bool need_states, int64_t samples) {
  return lstm_sample_gradients_cuda(
      to_device(grad_y), to_device(grad_h_n), to_device(grad_c_n), to_device(grad_cell_states),
      to_device(input), to_device(h_0), to_device(c_0), to_device(weights), to_device(lengths),
      batch_sizes, to_device(reset_mask), to_device(y), to_device(gates), to_device(cells),
      need_input, need_states, samples);
}

OptionForwardResult lstm_options_forward_emulated(
    const Tensor& input, const Tensor& h_0, const Tensor& c_0, const std::vector<Tensor>& weights,
    const std::optional<Tensor>& lengths, const std::optional<Tensor>& batch_sizes,
    const std::optional<Tensor>& reset_mask, const std::optional<Tensor>& peephole,
    const std::optional<Tensor>& h_mask, const std::optional<Tensor>& keep_c,
    const std::optional<Tensor>& keep_h, const std::optional<Tensor>& reset_h,
    const std::optional<Tensor>& reset_c, const std::optional<Tensor>& gains,
    const std::optional<Tensor>& cell_norm, bool coupled_gates, double cell_clip, double zoneout_c,
    double zoneout_h, bool save_for_backward, bool return_cell_states, bool recompute) {
  return lstm_options_forward_cuda(
      to_device(input), to_device(h_0), to_device(c_0), to_device(weights), to_device(lengths),
      batch_sizes, to_device(reset_mask), to_device(peephole), to_device(h_mask), to_device(keep_c),
      to_device(keep_h), to_device(reset_h), to_device(reset_c), to_device(gains),
      to_device(cell_norm), coupled_gates, cell_clip, zoneout_c, zoneout_h, save_for_backward,
      return_cell_states, recompute);
}

OptionBackwardResult lstm_options_backward_emulated(
    const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_h_n,
    const std::optional<Tensor>& grad_c_n, const std::optional<Tensor>& grad_cell_states,
    const Tensor& input, const Tensor& h_0, const Tensor& c_0, const std::vector<Tensor>& weights,
    const std::optional<Tensor>& lengths, const std::optional<Tensor>& batch_sizes,
    const std::optional<Tensor>& reset_mask, const std::optional<Tensor>& peephole,
    const std::optional<Tensor>& h_mask, const std::optional<Tensor>& keep_c,
    const std::optional<Tensor>& keep_h, const std::optional<Tensor>& reset_h,
    const std::optional<Tensor>& reset_c, const std::optional<Tensor>& gains,
    const std::optional<Tensor>& cell_norm, bool coupled_gates, double cell_clip, double zoneout_c,
    double zoneout_h, const Tensor& y, const Tensor& gates, const Tensor& cells,
    const Tensor& normalised, const Tensor& scales, bool need_input, bool need_states,
    bool need_weights, bool need_options) {
  return lstm_options_backward_cuda(
      to_device(grad_y), to_device(grad_h_n), to_device(grad_c_n), to_device(grad_cell_states),
      to_device(input), to_device(h_0), to_device(c_0), to_device(weights), to_device(lengths),
      batch_sizes, to_device(reset_mask), to_device(peephole), to_device(h_mask), to_device(keep_c),
      to_device(keep_h), to_device(reset_h), to_device(reset_c), to_device(gains),
      to_device(cell_norm), coupled_gates, cell_clip, zoneout_c, zoneout_h, to_device(y),
      to_device(gates), to_device(cells), to_device(normalised), to_device(scales), need_input,
      need_states, need_weights, need_options);
}

}  // namespace

Tensor new_tensor(const Sizes& sizes, ScalarType dtype, const Device&) {
  if (dtype == ScalarType::Byte && before_workspace != nullptr) {
    std::exchange(before_workspace, nullptr)();
  }
  int64_t strides[3] = {};
  int64_t elements = 1, stride = 1;
  for (int64_t i = sizes.dim() - 1; i >= 0; --i) {
    strides[i] = stride;
    stride *= std::max<int64_t>(sizes.data()[i], 1);
    elements *= sizes.data()[i];
  }
  const int64_t bytes = elements * element_bytes(dtype);
  const int64_t before = dtype == ScalarType::Byte ? 0 : offset * element_bytes(dtype);
  void* memory = nullptr;
  cuda::check_cuda(cudaMalloc(&memory, before + std::max<int64_t>(bytes, 1)), "cudaMalloc");
  const auto dim = static_cast<size_t>(sizes.dim());
  return torch::stable::from_blob(static_cast<char*>(memory) + before, {sizes.data(), dim},
                                  {strides, dim},
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU), dtype,
                                  [memory](void*) { cudaFree(memory); });
}

// The emulated device is number 0.
CudaContext current_cuda_context(const Device&) {
  CudaContext context;
  context.stream = stream;
  context.blas_handle = blas_handle();
  context.facts = cuda::query_device_facts(0);
  return context;
}

void warn_user(const std::string& text) { warnings += text + "\n"; }

}  // namespace lstm_fused

// For tests that set its math mode.
LSTM_EXPORT void* lstm_emulated_blas_handle() { return lstm_fused::blas_handle(); }

// Has every tensor from now on begin so many elements behind a boundary.
LSTM_EXPORT void lstm_emulated_set_offset(int elements) { lstm_fused::offset = elements; }

// Has a function called once, before memory is next taken for a workspace; null: none.
LSTM_EXPORT void lstm_emulated_set_before_workspace(void (*function)()) {
  lstm_fused::before_workspace = function;
}

// Has calls run on a stream from now on, and the handle with them; null: the legacy stream.
LSTM_EXPORT void lstm_emulated_set_stream(void* stream) {
  lstm_fused::stream = static_cast<cudaStream_t>(stream);
  cublasSetStream_v2(lstm_fused::blas_handle(), lstm_fused::stream);
}

// Puts a name in the place of LSTM_FUSED_CUDA_VARIANT.
LSTM_EXPORT void lstm_emulated_set_variant(const char* name) {
  lstm_fused::cuda::set_variant(name);
}

// Puts "1" or "0" in the place of LSTM_FUSED_CUDA_CHECK.
LSTM_EXPORT void lstm_emulated_set_first_use_checks(const char* value) {
  lstm_fused::cuda::set_first_use_checks(value);
}

// Puts a number in the place of LSTM_FUSED_CUDA_WAIT_SECONDS; gives the one before.
LSTM_EXPORT double lstm_emulated_set_wait_seconds(double seconds) {
  return lstm_fused::cuda::set_wait_seconds(seconds);
}

// As take_wait_failure says; valid until the next call.
LSTM_EXPORT const char* lstm_emulated_take_wait_failure() {
  static std::string text;
  text = lstm_fused::cuda::take_wait_failure(0);
  return text.c_str();
}

// As a new process: all variants are allowed, nothing was checked, no failure is known.
LSTM_EXPORT void lstm_emulated_forget() {
  lstm_fused::cuda::allow_all_variants(0);
  lstm_fused::cuda::forget_checks(0);
  lstm_fused::cuda::take_wait_failure(0);
  lstm_fused::warnings.clear();
}

// Why plans leave out groups of blocks, or else kernels of one block. Valid until the next call.
LSTM_EXPORT const char* lstm_emulated_refusal(bool group) {
  static std::string text;
  text = lstm_fused::cuda::refusal_of(0, group ? lstm_fused::cuda::Variant::kPersistentGroup
                                               : lstm_fused::cuda::Variant::kPersistentCta);
  return text.c_str();
}

// The warnings since the last call, a line each; valid until the next one.
LSTM_EXPORT const char* lstm_emulated_take_warnings() {
  static std::string text;
  text.swap(lstm_fused::warnings);
  lstm_fused::warnings.clear();
  return text.c_str();
}

// Expands LSTM_EMULATED_OPS before torch's macros make text of it.
#define LSTM_REGISTER_SCHEMAS(name)                \
  STABLE_TORCH_LIBRARY(name, m) {                  \
    m.def(lstm_fused::kLstmForwardSchema);         \
    m.def(lstm_fused::kLstmBackwardSchema);        \
    m.def(lstm_fused::kLstmSampleGradientsSchema); \
    m.def(lstm_fused::kLstmOptionsForwardSchema);  \
    m.def(lstm_fused::kLstmOptionsBackwardSchema); \
  }
#define LSTM_REGISTER_OPS(name)                                                              \
  STABLE_TORCH_LIBRARY_IMPL(name, CPU, m) {                                                  \
    m.impl("lstm_forward", TORCH_BOX(&lstm_fused::lstm_forward_emulated));                   \
    m.impl("lstm_backward", TORCH_BOX(&lstm_fused::lstm_backward_emulated));                 \
    m.impl("lstm_sample_gradients", TORCH_BOX(&lstm_fused::lstm_sample_gradients_emulated)); \
    m.impl("lstm_options_forward", TORCH_BOX(&lstm_fused::lstm_options_forward_emulated));   \
    m.impl("lstm_options_backward", TORCH_BOX(&lstm_fused::lstm_options_backward_emulated)); \
  }
LSTM_REGISTER_SCHEMAS(LSTM_EMULATED_OPS)
LSTM_REGISTER_OPS(LSTM_EMULATED_OPS)
