// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/stack_forward.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <sstream>
#include <thread>
#include <utility>

#include "common/error.h"
#include "common/integers.h"
#include "cpu/forward_group.h"
#include "cpu/lstm_forward.h"

namespace lstm_fused::cpu {
namespace {

// Units of a layer in a whole wavefront: the first and the last (layers - 1) of them leave workers
// without work, and each costs the hand-over of a cache line.
constexpr int64_t kUnitsOfLayer = 16;
constexpr int64_t kMaxUnitSteps = 16;
// Steps of a unit whose input GEMM is one pass over W_ih; fewer where the workers would wait longer
// for their first unit than a quarter of the steps takes. Measured, T=40 N=1 H=64: two layers take
// 33 microseconds, and 37 by units of two steps.
constexpr int64_t kFullUnitSteps = 6;
constexpr int64_t kMaxFillDivisor = 4;
// Fewer steps do not pay for the start of a second thread.
constexpr int64_t kMinSteps = 8;
// Multiply-adds of a layer that do.
constexpr int64_t kMinLayerWork = 1 << 18;
// Steps from which a wavefront also takes the place of teams, which meet at every step. Measured on
// two layers of H = 128 … 192, N = 1: T = 40 takes 4 to 6 % longer where cores answer each other in
// 0.1 microseconds, and T = 100 1.02 to 1.07 times less; where they take 1, 1.2 to 1.4 times less.
constexpr int64_t kMinStepsOfTeams = 96;
// The part of a core's L2 cache that a layer's weights may fill, in eighths: those of the steps,
// and those that pass through it for the input GEMM. Measured, T=100, Zen 5 with 1 MiB and Sapphire
// Rapids with 2: layers of up to 6/8 gain, those of 8/8 lose on the latter.
constexpr int64_t kCachedEighths = 7;
// Looks at the other layers before a worker offers its core to others.
constexpr int kSpins = 2000;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

int64_t layer_work(const LstmShape& shape) {
  return shape.steps * shape.batch * shape.hidden_size *
         (kGates * (shape.input_size + shape.output_size) +
          (shape.projection ? shape.output_size : 0));
}

int wavefront_workers(const std::vector<LstmShape>& layers, const CpuFacts& facts) {
  return static_cast<int>(std::min<int64_t>(facts.threads, layers.size()));
}

bool fits_cache(const LstmShape& shape, DType dtype, const LstmPlan& plan, const CpuFacts& facts) {
  const int64_t element = plan.dot ? dtype_size(dtype) : kernel_table(plan.isa, dtype).operand_size;
  const int64_t weights = kGates * shape.hidden_size * (shape.input_size + shape.output_size) +
                          (shape.projection ? shape.hidden_size * shape.output_size : 0);
  return weights * element * 8 <= facts.l2_bytes * kCachedEighths;
}

// Why the layers go one after the other, and null where they go side by side.
const char* why_in_turn(const std::vector<LstmShape>& layers, DType dtype, const CpuFacts& facts) {
  const LstmShape& first = layers.front();
  if (layers.size() < 2) return "one layer";
  if (facts.threads < 2) return "one thread allowed";
  if (first.directions == 2) {
    return "the reverse direction needs the whole sequence of the layer below";
  }
  if (first.batch < 1) return "no rows";
  if (first.steps < kMinSteps) return "too few steps to pay for a second thread";
  const int workers = wavefront_workers(layers, facts);
  for (const LstmShape& layer : layers) {
    if (layer_work(layer) < kMinLayerWork) return "too little work for a second thread";
    // Rows that are split over the threads keep them as busy, without waiting for each other.
    const LstmPlan own = make_forward_plan(layer, dtype, facts);
    if (own.row_groups > 1) return "the threads share each layer's rows";
    if (own.team > workers) return "more threads share each layer's units than there are layers";
    if (own.team == 1) continue;
    if (first.steps < kMinStepsOfTeams) return "the threads share each layer's units";
    // A team keeps a part of the weights in each core's cache.
    if (!fits_cache(layer, dtype, own, facts)) {
      return "the threads share each layer's units, whose weights one core's cache does not hold";
    }
  }
  return nullptr;
}

CpuFacts of_one_thread(CpuFacts facts) {
  facts.threads = 1;
  return facts;
}

// A layer of a wavefront, with all that it takes to run it.
struct WavefrontLayer {
  LstmPlan plan;
  std::vector<PackedWeights> weights;
  std::unique_ptr<Packer> packer;
  std::unique_ptr<ForwardGroup> group;
};

// Layers that go through time side by side. A unit is the packing of one layer's weights, or some
// steps of it; it may run when the layer's units before it have, and steps when those of their
// number in the layer below have too. Workers claim units, and prefer those of their own layers,
// whose weights are in their cache, since they have packed them. So nobody waits for a unit that no
// thread works on, whether workers come late, or never, or one thread is all of them in turn.
class Wavefront {
 public:
  Wavefront(const std::vector<WavefrontLayer>& layers, const StackPlan& plan)
      : layers_(layers),
        plan_(plan),
        units_(1 + ceil_div(layers.front().group->steps(), plan.steps)),
        progress_(new Progress[layers.size()]) {}

  void work(int worker) {
    const int layers = static_cast<int>(layers_.size());
    const int begin = layers * worker / plan_.workers, end = layers * (worker + 1) / plan_.workers;
    int spins = 0;
    while (!is_done()) {
      bool has_run = false;
      // The deepest of its own layers that can go on, and else any layer.
      for (int layer = end - 1; layer >= begin && !has_run; --layer) has_run = run_unit(layer);
      for (int layer = 0; layer < layers && !has_run; ++layer) has_run = run_unit(layer);
      if (has_run) {
        spins = 0;
      } else if (++spins < kSpins) {
        pause();
      } else {
        std::this_thread::yield();
      }
    }
  }

 private:
  struct alignas(64) Progress {  // a cache line each
    std::atomic<int64_t> done{0};
    std::atomic<bool> is_claimed{false};
  };

  bool is_done() const {
    return progress_[layers_.size() - 1].done.load(std::memory_order_acquire) == units_;
  }
  bool can_run(int layer, int64_t unit) const {
    return unit < units_ && (layer == 0 || unit == 0 ||
                             progress_[layer - 1].done.load(std::memory_order_acquire) > unit);
  }

  // Runs the layer's next unit; false where that is not to be had now.
  bool run_unit(int layer) {
    Progress& progress = progress_[layer];
    if (!can_run(layer, progress.done.load(std::memory_order_relaxed))) return false;
    if (progress.is_claimed.exchange(true, std::memory_order_acquire)) return false;
    const int64_t unit = progress.done.load(std::memory_order_relaxed);
    const bool runs = can_run(layer, unit);
    if (runs) {
      if (unit == 0) {
        layers_[layer].packer->run(Parallel{});
      } else {
        run_steps(*layers_[layer].group, unit - 1);
      }
      progress.done.store(unit + 1, std::memory_order_release);
    }
    progress.is_claimed.store(false, std::memory_order_release);
    return runs;
  }

  void run_steps(ForwardGroup& group, int64_t number) const {
    const int64_t per_unit = plan_.steps * group.phases_per_step();
    const int64_t end = std::min((number + 1) * per_unit, group.phases());
    for (int64_t phase = number * per_unit; phase < end; ++phase) group.run(phase, 0);
  }

  const std::vector<WavefrontLayer>& layers_;
  const StackPlan plan_;
  const int64_t units_;
  const std::unique_ptr<Progress[]> progress_;
};

}  // namespace

StackPlan make_stack_plan(const std::vector<LstmShape>& layers, DType dtype,
                          const CpuFacts& facts) {
  StackPlan plan;
  if (why_in_turn(layers, dtype, facts)) return plan;
  plan.workers = wavefront_workers(layers, facts);
  const int64_t steps = layers.front().steps;
  const int64_t full = std::min(kFullUnitSteps, steps / (kMaxFillDivisor * (plan.workers - 1)));
  plan.steps = std::clamp<int64_t>(std::max(steps / kUnitsOfLayer, full), 1, kMaxUnitSteps);
  return plan;
}

std::string explain_stack(const StackPlan& plan, const std::vector<LstmShape>& layers, DType dtype,
                          const CpuFacts& facts) {
  std::ostringstream text;
  if (plan.workers > 1) {
    text << "wavefront of " << plan.workers << " threads, " << plan.steps
         << " steps of a layer at a time (each thread keeps the weights of its own layers)";
    return text.str();
  }
  text << "layers one after the other (" << why_in_turn(layers, dtype, facts) << ")";
  return text.str();
}

void stack_forward(const std::vector<LstmForwardArgs>& layers, const StackPlan& plan,
                   const CpuFacts& facts, const Parallel& parallel) {
  if (plan.workers < 2) {
    for (const LstmForwardArgs& args : layers) {
      lstm_forward(args, make_forward_plan(args.shape, args.dtype, facts), parallel);
    }
    return;
  }
  std::vector<WavefrontLayer> stack(layers.size());
  for (size_t i = 0; i < layers.size(); ++i) {
    const LstmForwardArgs& args = layers[i];
    WavefrontLayer& layer = stack[i];
    layer.plan = make_forward_plan(args.shape, args.dtype, of_one_thread(facts));
    // A product ahead may take no more steps than the layer below has made by then: those of a
    // unit, or of an equal part of one.
    int64_t& ahead = layer.plan.input_gemm_steps;
    ahead = std::min(ahead, plan.steps);
    while (ahead > 1 && plan.steps % ahead != 0) --ahead;
    const KernelTable& table = kernel_table(layer.plan.isa, args.dtype);
    layer.packer = std::make_unique<Packer>(table);
    add_weights(args, layer.plan, table, *layer.packer, layer.weights);
    const std::vector<int64_t> lengths = sorted_lengths(*args.layout, args.shape.batch);
    const std::vector<Group> made = make_groups(args.shape, *args.layout, lengths, layer.plan);
    LSTM_CHECK(made.size() == 1, "a wavefront takes one group of rows, got ", made.size());
    layer.group = std::make_unique<ForwardGroup>(args, layer.plan, table, layer.weights.front(),
                                                 made.front(), lengths);
  }
  Wavefront wavefront(stack, plan);
  parallel.for_each(plan.workers,
                    [&](int64_t worker) { wavefront.work(static_cast<int>(worker)); });
  for (const WavefrontLayer& layer : stack) layer.group->store_final_states();
}

}  // namespace lstm_fused::cpu
