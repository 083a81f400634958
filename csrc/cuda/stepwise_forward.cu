// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/direction_weights.h"
#include "cuda/math.cuh"
#include "cuda/row_grid.cuh"
#include "cuda/status.h"
#include "cuda/stepwise_forward.h"
#include "cuda/storage.cuh"
#include "cuda/workspace.h"

namespace lstm_fused::cuda {
namespace {

// One direction's arrays at its step; (N, …) rows each.
struct ForwardStepDirection {
  int64_t step = 0;  // t
  const void* preactivations = nullptr;
  const void* bias = nullptr;
  const void* recurrent = nullptr;  // (N, 4H) accumulator; not read by rows at their first step
  const void* first_recurrent = nullptr;  // likewise from h_0, for those
  const void* h_0 = nullptr;
  const void* c_0 = nullptr;
  const void* c_prev = nullptr;  // (N, H) accumulator; not read by rows at their first step
  void* c = nullptr;             // (N, H) accumulator; may be c_prev
  void* y = nullptr;             // null with projection
  void* hidden = nullptr;        // (N, H) storage, o·tanh(c); null without projection
  void* h_n = nullptr;           // null with projection
  void* c_n = nullptr;
  void* cell_states = nullptr;
  void* gates = nullptr;
};

struct ForwardStepArgs {
  int64_t steps = 0, batch = 0, hidden_size = 0;
  int64_t y_stride = 0, cell_states_stride = 0;
  bool first_step = false;
  const int64_t* lengths = nullptr;
  const uint8_t* reset_mask = nullptr;
  ForwardStepDirection direction[kMaxDirections];
};

// NOTE: `gates` may be `preactivations`: each thread reads its own elements before it writes them.
template <typename Storage, int kWidth>
__global__ void __launch_bounds__(kRowThreads)
    forward_step_kernel(const __grid_constant__ ForwardStepArgs args) {
  const int64_t n = grid_row(), j = grid_column<kWidth>();
  const int64_t hidden = args.hidden_size;
  if (n >= args.batch || j >= hidden) return;
  const bool reverse = blockIdx.z == 1;
  const ForwardStepDirection d = reverse ? args.direction[1] : args.direction[0];
  const int64_t length = row_length(args.lengths, n, args.steps);
  const int64_t unit = n * hidden + j;
  const int64_t gate_unit = n * kGates * hidden + j;
  const int64_t y_unit = n * args.y_stride + j;
  const int64_t cell_unit = n * args.cell_states_stride + j;

  // A row that takes no part has zero outputs; one without any step ends where it began.
  if (d.step >= length) {
    const Values<Storage, kWidth> zero;
    if (d.y != nullptr) store<Storage>(d.y, y_unit, zero);
    if (d.hidden != nullptr) store<Storage>(d.hidden, unit, zero);
    if (d.cell_states != nullptr) store<Storage>(d.cell_states, cell_unit, zero);
    if (args.first_step && length == 0) {
      store<Storage>(d.c_n, unit, load<Storage, kWidth>(d.c_0, unit));
      if (d.h_n != nullptr) store<Storage>(d.h_n, unit, load<Storage, kWidth>(d.h_0, unit));
    }
    return;
  }
  const bool first = d.step == (reverse ? length - 1 : 0);
  const bool last = d.step == (reverse ? 0 : length - 1);
  const bool reset = is_reset(args.reset_mask, d.step, n, args.batch);

  // Add up the pre-activations: input, bias, and the entering h unless it is reset.
  Values<Storage, kWidth> a[kGates];
#pragma unroll
  for (int gate = 0; gate < kGates; ++gate) {
    a[gate] = load_accumulators<Storage, kWidth>(d.preactivations, gate_unit + gate * hidden);
    if (d.bias != nullptr) {
      const auto bias = load_accumulators<Storage, kWidth>(d.bias, gate * hidden + j);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) a[gate][i] += bias[i];
    }
    if (!reset) {
      const auto h = load_accumulators<Storage, kWidth>(first ? d.first_recurrent : d.recurrent,
                                                        gate_unit + gate * hidden);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) a[gate][i] += h[i];
    }
  }
  Values<Storage, kWidth> c;
  if (!reset) {
    c = first ? load<Storage, kWidth>(d.c_0, unit)
              : load_accumulators<Storage, kWidth>(d.c_prev, unit);
  }

  // The cell.
  Values<Storage, kWidth> h;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    const auto gates = activate_gates<DeviceMath>(a[kInputGate][i], a[kForgetGate][i],
                                                  a[kCellGate][i], a[kOutputGate][i]);
    const auto out = lstm_cell_forward<DeviceMath>(gates, c[i]);
    a[kInputGate][i] = gates.i;
    a[kForgetGate][i] = gates.f;
    a[kCellGate][i] = gates.g;
    a[kOutputGate][i] = gates.o;
    c[i] = out.c;
    h[i] = out.h;
  }

  // Store what the next step, the caller and the backward need.
  store_accumulators<Storage>(d.c, unit, c);
  if (d.y != nullptr) store<Storage>(d.y, y_unit, h);
  if (d.hidden != nullptr) store<Storage>(d.hidden, unit, h);
  if (d.cell_states != nullptr) store<Storage>(d.cell_states, cell_unit, c);
  if (d.gates != nullptr) {
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) {
      store<Storage>(d.gates, gate_unit + gate * hidden, a[gate]);
    }
  }
  if (last) {
    store<Storage>(d.c_n, unit, c);
    if (d.h_n != nullptr) store<Storage>(d.h_n, unit, h);
  }
}

struct FinalOutputArgs {
  int64_t steps = 0, batch = 0, output_size = 0, y_stride = 0;
  const int64_t* lengths = nullptr;
  const void* h_0[kMaxDirections] = {};
  const void* y[kMaxDirections] = {};
  void* h_n[kMaxDirections] = {};
};

// With projection: h_n from y at each row's last step.
template <typename Storage>
__global__ void __launch_bounds__(kRowThreads)
    final_output_kernel(const __grid_constant__ FinalOutputArgs args) {
  const int64_t n = grid_row(), p = grid_column<1>();
  if (n >= args.batch || p >= args.output_size) return;
  const bool reverse = blockIdx.z == 1;
  const auto* h_0 = static_cast<const Storage*>(reverse ? args.h_0[1] : args.h_0[0]);
  const auto* y = static_cast<const Storage*>(reverse ? args.y[1] : args.y[0]);
  auto* h_n = static_cast<Storage*>(reverse ? args.h_n[1] : args.h_n[0]);
  const int64_t length = row_length(args.lengths, n, args.steps);
  const int64_t last = reverse ? 0 : length - 1;
  const int64_t unit = n * args.output_size + p;
  h_n[unit] = length == 0 ? h_0[unit] : y[(last * args.batch + n) * args.y_stride + p];
}

// Whether rows can be moved `width` elements at a time.
bool can_vectorize(const RecurrenceArgs& args, const ForwardRecurrence& d, int width) {
  const int64_t storage = width * dtype_size(args.dtype);
  const int64_t accumulator = width * accumulator_size(args.dtype);
  return args.shape.hidden_size % width == 0 && is_aligned(d.preactivations, accumulator) &&
         is_aligned(d.bias, accumulator) && is_aligned(d.cells, accumulator) &&
         is_aligned(d.h_0, storage) && is_aligned(d.c_0, storage) && is_aligned(d.y, storage) &&
         is_aligned(d.h_n, storage) && is_aligned(d.c_n, storage) &&
         is_aligned(d.cell_states, storage) && is_aligned(d.gates, storage);
}

template <typename Storage, int kWidth>
void launch_forward_step(const ForwardStepArgs& args, int directions, cudaStream_t stream) {
  const RowGrid launch = row_grid(args.batch, args.hidden_size, kWidth, directions);
  if (launch.empty) return;
  forward_step_kernel<Storage, kWidth><<<launch.grid, launch.block, 0, stream>>>(args);
  check_launch("forward_step_kernel");
}

template <typename Storage>
void launch_final_output(const RecurrenceArgs& args, const ForwardRecurrence* directions) {
  const LstmShape& s = args.shape;
  FinalOutputArgs out;
  out.steps = s.steps;
  out.batch = s.batch;
  out.output_size = s.output_size;
  out.y_stride = s.directions * s.output_size;
  out.lengths = args.lengths;
  for (int i = 0; i < s.directions; ++i) {
    out.h_0[i] = directions[i].h_0;
    out.y[i] = directions[i].y;
    out.h_n[i] = directions[i].h_n;
  }
  const RowGrid launch = row_grid(s.batch, s.output_size, 1, s.directions);
  if (launch.empty) return;
  final_output_kernel<Storage><<<launch.grid, launch.block, 0, args.stream>>>(out);
  check_launch("final_output_kernel");
}

template <typename Storage>
void run_stepwise_forward(const RecurrenceArgs& args, const ForwardRecurrence* directions,
                          const Blas& blas) {
  const LstmShape& s = args.shape;
  const int count = s.directions;
  const int64_t storage = dtype_size(args.dtype), accumulator = accumulator_size(args.dtype);
  const int64_t gates = kGates * s.hidden_size, y_stride = count * s.output_size;
  const bool training = directions[0].cells != nullptr;
  constexpr int kWidth = kVectorWidth<Accumulator<Storage>>;

  // Lay out the workspace.
  const StepwiseForwardWorkspace parts = stepwise_forward_workspace(s, args.dtype, training);
  char* workspace = static_cast<char*>(args.workspace);
  void* recurrent = workspace + parts.recurrent;
  void* first_recurrent = workspace + parts.first_recurrent;
  void* hidden = workspace + parts.hidden;
  const void *w_hh_of[kMaxDirections] = {}, *w_hr_of[kMaxDirections] = {};
  bool vectorize = true;
  for (int i = 0; i < count; ++i) {
    w_hh_of[i] = directions[i].w_hh;
    w_hr_of[i] = directions[i].w_hr;
    vectorize = vectorize && can_vectorize(args, directions[i], kWidth);
  }
  const DirectionWeights w_hh(w_hh_of, count, gates * s.output_size, args.dtype,
                              workspace + parts.w_hh, args.stream);
  const DirectionWeights w_hr(w_hr_of, count, s.projection ? s.output_size * s.hidden_size : 0,
                              args.dtype, workspace + parts.w_hr, args.stream);

  // What h_0 sends to each row's first step.
  for (int i = 0; i < count; ++i) {
    Gemm gemm;
    gemm.m = s.batch;
    gemm.n = gates;
    gemm.k = s.output_size;
    gemm.a = {directions[i].h_0, s.output_size};
    gemm.b = {directions[i].w_hh, s.output_size, true};
    gemm.c = advance(first_recurrent, i * s.batch * gates, accumulator);
    gemm.c_stride = gates;
    gemm.c_accumulator = true;
    blas.gemm(gemm);
  }

  const auto y_rows = [&](int i, int64_t t) {
    return advance(directions[i].y, t * s.batch * y_stride, storage);
  };
  for (int64_t step = 0; step < s.steps; ++step) {
    const int64_t t[] = {step, s.steps - 1 - step}, t_prev[] = {step - 1, s.steps - step};

    // Multiply the h of the step before.
    DirectionOrder order;
    if (step > 0) {
      const void* rows[kMaxDirections] = {};
      for (int i = 0; i < count; ++i) rows[i] = y_rows(i, t_prev[i]);
      order = direction_order(rows, count, storage);
      Gemm gemm;
      gemm.m = s.batch;
      gemm.n = gates;
      gemm.k = s.output_size;
      gemm.a = {rows[order.first], y_stride, false, order.stride};
      gemm.b = {w_hh.from(order), s.output_size, true, gates * s.output_size};
      gemm.c = recurrent;
      gemm.c_stride = gates;
      gemm.c_batch_stride = s.batch * gates;
      gemm.c_accumulator = true;
      gemm.batch = count;
      blas.gemm(gemm);
    }

    // Run the cells.
    void* out_rows[kMaxDirections] = {};
    for (int i = 0; i < count; ++i) out_rows[i] = y_rows(i, t[i]);
    const DirectionOrder out_order = direction_order(out_rows, count, storage);
    ForwardStepArgs step_args;
    step_args.steps = s.steps;
    step_args.batch = s.batch;
    step_args.hidden_size = s.hidden_size;
    step_args.y_stride = y_stride;
    step_args.cell_states_stride = count * s.hidden_size;
    step_args.first_step = step == 0;
    step_args.lengths = args.lengths;
    step_args.reset_mask = args.reset_mask;
    for (int i = 0; i < count; ++i) {
      const ForwardRecurrence& d = directions[i];
      const int64_t row = t[i] * s.batch, unit = row * s.hidden_size;
      ForwardStepDirection& out = step_args.direction[i];
      out.step = t[i];
      out.preactivations = advance(d.preactivations, row * gates, accumulator);
      out.bias = d.bias;
      out.recurrent = advance(recurrent, order.element(i) * s.batch * gates, accumulator);
      out.first_recurrent = advance(first_recurrent, i * s.batch * gates, accumulator);
      out.h_0 = d.h_0;
      out.c_0 = d.c_0;
      if (training) {
        // NOTE: out of range at the first step, where no row reads it.
        out.c_prev =
            step > 0 ? advance(d.cells, t_prev[i] * s.batch * s.hidden_size, accumulator) : nullptr;
        out.c = advance(d.cells, unit, accumulator);
      } else {
        out.c = advance(workspace + parts.cell, i * s.batch * s.hidden_size, accumulator);
        out.c_prev = out.c;
      }
      if (s.projection) {
        out.hidden = advance(hidden, out_order.element(i) * s.batch * s.hidden_size, storage);
      } else {
        out.y = out_rows[i];
        out.h_n = d.h_n;
      }
      out.c_n = d.c_n;
      out.cell_states = advance(d.cell_states, unit * count, storage);
      out.gates = advance(d.gates, row * gates, storage);
    }
    if (vectorize) {
      launch_forward_step<Storage, kWidth>(step_args, count, args.stream);
    } else {
      launch_forward_step<Storage, 1>(step_args, count, args.stream);
    }

    // Project.
    if (s.projection) {
      Gemm gemm;
      gemm.m = s.batch;
      gemm.n = s.output_size;
      gemm.k = s.hidden_size;
      gemm.a = {hidden, s.hidden_size, false, s.batch * s.hidden_size};
      gemm.b = {w_hr.from(out_order), s.hidden_size, true, s.output_size * s.hidden_size};
      gemm.c = out_rows[out_order.first];
      gemm.c_stride = y_stride;
      gemm.c_batch_stride = out_order.stride;
      gemm.batch = count;
      blas.gemm(gemm);
    }
  }
  if (s.projection) launch_final_output<Storage>(args, directions);
}

}  // namespace

void stepwise_forward(const RecurrenceArgs& args, const ForwardRecurrence* directions,
                      const Blas& blas) {
  dispatch_storage(args.dtype, [&](auto storage) {
    run_stepwise_forward<decltype(storage)>(args, directions, blas);
  });
}

}  // namespace lstm_fused::cuda
