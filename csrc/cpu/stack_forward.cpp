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
// Fewer steps do not pay for the start of a second thread.
constexpr int64_t kMinSteps = 8;
// Multiply-adds of a layer that do.
constexpr int64_t kMinLayerWork = 1 << 18;
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

CpuFacts of_one_thread(CpuFacts facts) {
  facts.threads = 1;
  return facts;
}

// Layers that go through time side by side. A unit is some steps of one layer; it may run when the
// layer's units before it have, and that of its number in the layer below. Workers claim units, and
// prefer those of their own layers, whose weights are in their cache. So nobody waits for a unit
// that no thread works on, whether workers come late, or never, or one thread is all of them in
// turn.
class Wavefront {
 public:
  Wavefront(std::vector<std::unique_ptr<ForwardGroup>> groups, const StackPlan& plan)
      : groups_(std::move(groups)),
        plan_(plan),
        units_(ceil_div(groups_.front()->steps(), plan.steps)),
        progress_(new Progress[groups_.size()]) {}

  void work(int worker) {
    const int layers = static_cast<int>(groups_.size());
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

  void store_final_states() const {
    for (const auto& group : groups_) group->store_final_states();
  }

 private:
  struct alignas(64) Progress {  // a cache line each
    std::atomic<int64_t> done{0};
    std::atomic<bool> is_claimed{false};
  };

  bool is_done() const {
    return progress_[groups_.size() - 1].done.load(std::memory_order_acquire) == units_;
  }
  bool can_run(int layer, int64_t unit) const {
    return unit < units_ &&
           (layer == 0 || progress_[layer - 1].done.load(std::memory_order_acquire) > unit);
  }

  // Runs the layer's next unit; false where that is not to be had now.
  bool run_unit(int layer) {
    Progress& progress = progress_[layer];
    if (!can_run(layer, progress.done.load(std::memory_order_relaxed))) return false;
    if (progress.is_claimed.exchange(true, std::memory_order_acquire)) return false;
    const int64_t unit = progress.done.load(std::memory_order_relaxed);
    const bool runs = can_run(layer, unit);
    if (runs) {
      ForwardGroup& group = *groups_[layer];
      const int64_t per_unit = plan_.steps * group.phases_per_step();
      const int64_t end = std::min((unit + 1) * per_unit, group.phases());
      for (int64_t phase = unit * per_unit; phase < end; ++phase) group.run(phase, 0);
      progress.done.store(unit + 1, std::memory_order_release);
    }
    progress.is_claimed.store(false, std::memory_order_release);
    return runs;
  }

  const std::vector<std::unique_ptr<ForwardGroup>> groups_;
  const StackPlan plan_;
  const int64_t units_;
  const std::unique_ptr<Progress[]> progress_;
};

}  // namespace

StackPlan make_stack_plan(const std::vector<LstmShape>& layers, DType dtype,
                          const CpuFacts& facts) {
  StackPlan plan;
  const LstmShape& first = layers.front();
  const bool is_dense = first.directions == 1 && first.batch >= 1 && first.steps >= kMinSteps;
  if (layers.size() < 2 || facts.threads < 2 || !is_dense) return plan;
  for (const LstmShape& layer : layers) {
    // Rows that are split over the threads keep them as busy, without waiting for each other; units
    // that are leave each thread a share of the weights that fits its cache.
    const LstmPlan own = make_forward_plan(layer, dtype, facts);
    if (own.row_groups * own.team > 1 || layer_work(layer) < kMinLayerWork) return plan;
  }
  plan.workers = static_cast<int>(std::min<int64_t>(facts.threads, layers.size()));
  plan.steps = std::clamp<int64_t>(first.steps / kUnitsOfLayer, 1, kMaxUnitSteps);
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
  text << "layers one after the other (";
  const LstmShape& first = layers.front();
  if (facts.threads < 2) {
    text << "one thread allowed";
  } else if (first.directions == 2) {
    text << "the reverse direction needs the whole sequence of the layer below";
  } else if (first.steps < kMinSteps) {
    text << "fewer than " << kMinSteps << " steps";
  } else {
    const bool splits = std::any_of(layers.begin(), layers.end(), [&](const LstmShape& layer) {
      const LstmPlan own = make_forward_plan(layer, dtype, facts);
      return own.row_groups * own.team > 1;
    });
    text << (splits ? "the threads share each layer" : "too little work for a second thread");
  }
  text << ")";
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
  const size_t count = layers.size();
  std::vector<LstmPlan> plans(count);
  std::vector<std::vector<PackedWeights>> weights(count);
  std::vector<std::unique_ptr<ForwardGroup>> groups;
  for (size_t i = 0; i < count; ++i) {
    const LstmForwardArgs& args = layers[i];
    plans[i] = make_forward_plan(args.shape, args.dtype, of_one_thread(facts));
    // A product ahead may take no more steps than the layer below has made by then: those of a
    // unit, or of an equal part of one.
    int64_t& ahead = plans[i].input_gemm_steps;
    ahead = std::min(ahead, plan.steps);
    while (ahead > 1 && plan.steps % ahead != 0) --ahead;
    const KernelTable& table = kernel_table(plans[i].isa, args.dtype);
    pack_weights(args, plans[i], table, parallel, weights[i]);
    const std::vector<int64_t> lengths = sorted_lengths(*args.layout, args.shape.batch);
    const std::vector<Group> made = make_groups(args.shape, *args.layout, lengths, plans[i]);
    LSTM_CHECK(made.size() == 1, "a wavefront takes one group of rows, got ", made.size());
    groups.push_back(std::make_unique<ForwardGroup>(args, plans[i], table, weights[i].front(),
                                                    made.front(), lengths));
  }
  Wavefront wavefront(std::move(groups), plan);
  parallel.for_each(plan.workers,
                    [&](int64_t worker) { wavefront.work(static_cast<int>(worker)); });
  wavefront.store_final_states();
}

}  // namespace lstm_fused::cpu
