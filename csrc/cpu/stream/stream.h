// SPDX-License-Identifier: BSD-3-Clause
// A stack of layers taken through time step by step, the state kept in between.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/kernels/kernels.h"
#include "cpu/runtime/scratch.h"
#include "cpu/stream/model.h"
#include "cpu/stream/packed_steps.h"

namespace lstm_fused::cpu {

// After its construction nothing allocates, locks, throws or starts a thread, so that a step may
// run where time is promised. A stream serves one thread at a time; many streams may share a model
// and run at once. N rows of the batch, all in the same step.
class Stream {
 public:
  // The state begins as zero. Throws Error where `batch` is below 1 or the state is too large.
  Stream(std::shared_ptr<const StreamModel> model, int64_t batch);
  // Shares the weights; the state is a copy.
  Stream(const Stream& other);
  Stream& operator=(const Stream&) = delete;
  // Takes over the state of a stream of the same dtype, batch and sizes, bit for bit: get_state
  // rounds c of 16-bit types.
  void copy_state(const Stream& other);

  const StreamModel& model() const { return *model_; }
  int64_t batch() const { return batch_; }

  // One step: x (N, D), y (N, O or P), storage.
  void step(const void* x, void* y) noexcept;
  // Steps one after the other: x (T, N, D), y (T, N, O or P). The bits are those of `step`.
  void run(int64_t steps, const void* x, void* y) noexcept;

  // Zero states, of the rows that `mask` (N) marks; of all where it is null.
  void reset(const uint8_t* mask) noexcept;
  // h (N, P) and c (N, H) of a layer, storage.
  void get_state(int64_t layer, void* h, void* c) const noexcept;
  void set_state(int64_t layer, const void* h, const void* c) noexcept;

 private:
  struct Layer {
    Buffer h[2];         // (N, P) operand: the one is read in a step, the other written
    Buffer c;            // (N, H) accumulator
    Buffer cell_output;  // (N, H) operand: o·tanh(c), with output projection
    int64_t h_stride = 0, cell_output_stride = 0;
    ForwardStep cells[2];       // by which of `h` is read
    LinearStep projections[2];  // with output projection
  };

  void prepare(int64_t index);
  void prepare_head();
  StreamLayerState state_of(const Layer& layer) const;
  void run_layers(const void* x, void* y) noexcept;
  void run_step(const void* x, void* y) noexcept;

  const std::shared_ptr<const StreamModel> model_;
  const int64_t batch_;
  const int64_t storage_, operand_, accumulator_;  // bytes of an element
  Buffer x_;                                       // (N, D) operand, where x must be converted
  std::vector<Layer> layers_;
  std::unique_ptr<PackedSteps> packed_;  // the layers' steps, where the weights are packed
  LinearStep head_;
  int read_ = 0;  // which of `h` holds the state
};

}  // namespace lstm_fused::cpu
