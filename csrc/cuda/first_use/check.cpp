// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/first_use/check.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <vector>

#include "common/error.h"
#include "common/integers.h"
#include "common/setting.h"
#include "cuda/availability.h"
#include "cuda/first_use/plan.h"
#include "cuda/first_use/problem.h"
#include "cuda/lstm_backward.h"
#include "cuda/lstm_forward.h"
#include "cuda/options/backward.h"
#include "cuda/options/forward.h"
#include "cuda/persistent/wait_failure.h"
#include "cuda/status.h"

namespace lstm_fused::cuda {
namespace {

Setting check_setting("LSTM_FUSED_CUDA_CHECK", {"1", "0"}, "1 or 0");

// The kernels that were checked on a device: a bit for each. NOTE: two threads may check one kernel
// at the same time, which does no harm; a lock would be held while the device is waited for.
constexpr int kWordBits = 64;
static_assert(kPersistentKernels % kWordBits == 0, "words of bits");
using Checked = std::array<std::atomic<uint64_t>, kPersistentKernels / kWordBits>;
Checked& checked_on(int device) {
  static Checked checked[kMaxDevices];
  check_device(device);
  return checked[device];
}

// Lets this thread wait for the stream while another one is captured.
class RelaxedCapture {
 public:
  RelaxedCapture() { exchange(); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  void exchange() {
    check_cuda(cudaThreadExchangeStreamCaptureMode(&mode_), "cudaThreadExchangeStreamCaptureMode");
  }
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

bool is_captured(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(stream, &status) == cudaSuccess) {
    return status != cudaStreamCaptureStatusNone;
  }
  cudaGetLastError();  // the default stream, which must not be asked while any stream is captured
  return true;
}

// All that a launch has in common beside what options of a direction there are. NOTE: not coupled
// gates, with which nothing of i would be checked.
const CellOptions kOptions = {/*coupled_gates=*/false, /*cell_clip=*/0.75, 0, 0};

class Check {
 public:
  Check(const CheckPlan& plan, DType dtype, bool backward, const CheckContext& context)
      : plan_(plan),
        shape_(plan.shape),
        dtype_(dtype),
        backward_(backward),
        context_(context),
        inputs_(lay_out_inputs(plan.shape, dtype)),
        outputs_(lay_out_outputs(plan.shape, dtype)) {
    const int64_t workspace =
        std::max({plan.persistent.workspace_bytes, plan.forward.workspace_bytes,
                  plan.backward.workspace_bytes});
    memory_ = static_cast<char*>(
        context.allocate(outputs_begin(kVariants) + round_up(workspace, int64_t{256})));
  }

  // What is wrong with the persistent kernel; empty: nothing.
  std::string run() const {
    const std::vector<char> inputs = make_inputs(shape_, dtype_);
    copy(memory_, inputs.data(), inputs_.bytes, cudaMemcpyHostToDevice);
    check_cuda(cudaMemsetAsync(memory_ + outputs_begin(0), 0,
                               static_cast<size_t>(kVariants * outputs_.bytes), context_.stream),
               "cudaMemsetAsync");
    run_forward(plan_.forward, kStepwise);
    if (backward_) run_backward(plan_.backward, kStepwise);
    wait();
    // What is no fault of this kernel is raised: a call before it on this device that has given up
    // since this one began, and a limit of waiting that is no number.
    check_wait_failures(context_.device);
    if (plan_.persistent.persistent.group) wait_limit();
    try {
      backward_ ? run_backward(plan_.persistent, kPersistent)
                : run_forward(plan_.persistent, kPersistent);
      wait();
    } catch (const Error& error) {  // of the persistent kernel: stepwise has run
      return error.what();
    }
    const std::string failure = take_wait_failure(context_.device);
    if (!failure.empty()) return failure;
    return find_difference(shape_, dtype_, backward_, plan_.persistent.has_options,
                           allowed_difference(dtype_, plan_.persistent.allow_tf32),
                           outputs_of(kStepwise), outputs_of(kPersistent));
  }

 private:
  // Whose outputs: those of the stepwise variant, or of the persistent one.
  enum Outputs { kStepwise, kPersistent };
  static constexpr int kVariants = 2;

  int64_t outputs_begin(int which) const { return inputs_.bytes + which * outputs_.bytes; }
  void copy(void* to, const void* from, int64_t bytes, cudaMemcpyKind kind) const {
    check_cuda(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), kind, context_.stream),
               "cudaMemcpyAsync");
  }
  void wait() const { check_cuda(cudaStreamSynchronize(context_.stream), "cudaStreamSynchronize"); }
  std::vector<char> outputs_of(Outputs which) const {
    std::vector<char> found(static_cast<size_t>(outputs_.bytes));
    copy(found.data(), memory_ + outputs_begin(which), outputs_.bytes, cudaMemcpyDeviceToHost);
    wait();
    return found;
  }

  const void* input(int64_t begin, int direction, int64_t elements) const {
    return memory_ + begin + direction * elements * dtype_size(dtype_);
  }
  void* output(Outputs which, int64_t begin, int direction, int64_t elements, int64_t size) const {
    return memory_ + outputs_begin(which) + begin + direction * elements * size;
  }
  template <typename Call>
  void set_common(Call& call) const {
    call.shape = shape_;
    call.dtype = dtype_;
    call.lengths = reinterpret_cast<const int64_t*>(memory_ + inputs_.lengths);
    call.reset_mask = reinterpret_cast<const uint8_t*>(memory_ + inputs_.reset_mask);
    call.workspace = memory_ + outputs_begin(kVariants);
    call.blas_handle = context_.blas_handle;
    call.stream = context_.stream;
  }
  LstmWeights weights(int direction) const;
  CellOptionInputs options(int direction) const;
  void set_forward(Outputs which, LstmForwardCall& call) const;
  LstmBackwardDirection backward_direction(Outputs which, int direction) const;
  void run_forward(const LstmPlan& plan, Outputs which) const;
  void run_backward(const LstmPlan& plan, Outputs which) const;
  void run_options_backward(const LstmPlan& plan, Outputs which) const;

  const CheckPlan& plan_;
  const LstmShape shape_;
  const DType dtype_;
  const bool backward_;
  const CheckContext& context_;
  const ProblemInputs inputs_;
  const ProblemOutputs outputs_;
  char* memory_;  // the inputs, both variants' outputs, and the workspace
};

LstmWeights Check::weights(int direction) const {
  const int64_t gates = kGates * shape_.hidden_size;
  LstmWeights weights;
  weights.w_ih = input(inputs_.w_ih, direction, gates * shape_.input_size);
  weights.w_hh = input(inputs_.w_hh, direction, gates * shape_.hidden_size);
  weights.b_ih = input(inputs_.b_ih, direction, gates);
  weights.b_hh = input(inputs_.b_hh, direction, gates);
  return weights;
}

CellOptionInputs Check::options(int direction) const {
  const int64_t state = shape_.batch * shape_.hidden_size, sequence = shape_.steps * state;
  const auto flags = [&](int64_t begin) {
    return reinterpret_cast<const uint8_t*>(memory_ + begin + direction * sequence);
  };
  CellOptionInputs to;
  to.peephole = input(inputs_.peephole, direction, kPeepholes * shape_.hidden_size);
  to.h_mask = input(inputs_.h_mask, direction, state);
  to.keep_c = flags(inputs_.keep_c);
  to.keep_h = flags(inputs_.keep_h);
  to.reset_h = input(inputs_.reset_h, direction, state);
  to.reset_c = input(inputs_.reset_c, direction, state);
  return to;
}

void Check::set_forward(Outputs which, LstmForwardCall& call) const {
  const int64_t hidden = shape_.hidden_size, state = shape_.batch * hidden;
  const int64_t sequence = shape_.steps * state, size = dtype_size(dtype_);
  set_common(call);
  call.x = input(inputs_.x, 0, 0);
  for (int d = 0; d < shape_.directions; ++d) {
    LstmForwardDirection& to = call.direction[d];
    to.weights = weights(d);
    to.h_0 = input(inputs_.h_0, d, state);
    to.c_0 = input(inputs_.c_0, d, state);
    to.y = output(which, outputs_.y, d, hidden, size);
    to.cell_states = output(which, outputs_.cell_states, d, hidden, size);
    to.h_n = output(which, outputs_.h_n, d, state, size);
    to.c_n = output(which, outputs_.c_n, d, state, size);
    to.gates = output(which, outputs_.gates, d, kGates * sequence, size);
    to.cells = output(which, outputs_.cells, d, sequence, accumulator_size(dtype_));
  }
}

void Check::run_forward(const LstmPlan& plan, Outputs which) const {
  if (!plan.has_options) {
    LstmForwardCall call;
    set_forward(which, call);
    return lstm_forward(call, plan);
  }
  OptionsForwardCall call;
  set_forward(which, call);
  call.options = kOptions;
  for (int d = 0; d < shape_.directions; ++d) call.direction[d].options = options(d);
  options_forward(call, plan);
}

// From what the stepwise forward has saved.
LstmBackwardDirection Check::backward_direction(Outputs which, int d) const {
  const int64_t hidden = shape_.hidden_size, state = shape_.batch * hidden;
  const int64_t sequence = shape_.steps * state, size = dtype_size(dtype_);
  LstmBackwardDirection to;
  to.weights = weights(d);
  to.c_0 = input(inputs_.c_0, d, state);
  to.gates = output(kStepwise, outputs_.gates, d, kGates * sequence, size);
  to.cells = output(kStepwise, outputs_.cells, d, sequence, accumulator_size(dtype_));
  to.grad_y = input(inputs_.grad_y, d, hidden);
  to.grad_cell_states = input(inputs_.grad_cell_states, d, hidden);
  to.grad_h_n = input(inputs_.grad_h_n, d, state);
  to.grad_c_n = input(inputs_.grad_c_n, d, state);
  to.grad_gates = output(which, outputs_.grad_gates, d, kGates * sequence, size);
  to.grad_h_0 = output(which, outputs_.grad_h_0, d, state, size);
  to.grad_c_0 = output(which, outputs_.grad_c_0, d, state, size);
  return to;
}

void Check::run_backward(const LstmPlan& plan, Outputs which) const {
  if (plan.has_options) return run_options_backward(plan, which);
  LstmBackwardCall call;
  set_common(call);
  for (int d = 0; d < shape_.directions; ++d) call.direction[d] = backward_direction(which, d);
  lstm_backward(call, plan);
}

void Check::run_options_backward(const LstmPlan& plan, Outputs which) const {
  const int64_t hidden = shape_.hidden_size, state = shape_.batch * hidden;
  const int64_t size = dtype_size(dtype_);
  OptionsBackwardCall call;
  set_common(call);
  call.options = kOptions;
  OptionRecurrence recurrences[kMaxDirections];
  for (int d = 0; d < shape_.directions; ++d) {
    LstmBackwardDirection& to = call.direction[d].recurrence;
    to = backward_direction(which, d);
    to.options = options(d);
    to.grad_options.peephole = output(which, outputs_.grad_peephole, d, kPeepholes * hidden, size);
    to.grad_options.reset_h = output(which, outputs_.grad_reset_h, d, state, size);
    to.grad_options.reset_c = output(which, outputs_.grad_reset_c, d, state, size);
    recurrences[d].grad_gates = to.grad_gates;
  }
  const Blas blas(call.blas_handle, call.stream, dtype_, plan.allow_tf32);
  options_recurrence(call, plan, recurrences, call.workspace, blas);
}

}  // namespace

std::string check_first_use(const LstmPlan& plan, DType dtype, bool backward,
                            const CheckContext& context) {
  if (plan.variant == Variant::kStepwise) return "";
  const int kernel = kernel_number(plan, backward);
  std::atomic<uint64_t>& checked = checked_on(context.device)[kernel / kWordBits];
  const uint64_t bit = uint64_t{1} << kernel % kWordBits;
  if ((checked.load(std::memory_order_acquire) & bit) != 0) return "";
  if (check_setting.index() != 0 || is_captured(context.stream)) return "";
  const std::optional<CheckPlan> check = make_check_plan(plan, dtype, backward, context.facts);
  std::string fault;
  if (check) {
    const RelaxedCapture relaxed;
    fault = Check(*check, dtype, backward, context).run();
  }
  std::string warning;
  if (!fault.empty()) {
    const std::string why = std::string(backward ? "backward" : "forward") + ", " +
                            describe(check->persistent.persistent) +
                            (plan.has_options ? ", with options of the cell: " : ": ") + fault;
    refuse_variant(context.device, plan.variant, "in the check before its first use, " + why);
    warning =
        "CUDA device " + std::to_string(context.device) +
        ": a kernel does not work here, as was found in the check before its first use (" + why +
        "). Kernels of " + (plan.persistent.group ? "groups of blocks" : "one block") +
        " are off on this device from now on: calls run stepwise, with right results. Please "
        "report this with the output of `python -m lstm_fused check`; LSTM_FUSED_CUDA_CHECK=0 "
        "leaves such checks out";
  }
  checked.fetch_or(bit, std::memory_order_release);  // no thread takes it before it is refused
  return warning;
}

std::string set_first_use_checks(const std::string& value) { return check_setting.set(value); }

void forget_checks(int device) {
  for (std::atomic<uint64_t>& word : checked_on(device)) word = 0;
}

}  // namespace lstm_fused::cuda
