// SPDX-License-Identifier: BSD-3-Clause
// lstm_fused._C: importing it registers the ops; what is not an op is bound here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "common/error.h"
#include "common/lstm.h"
#include "cpu/cpu_features.h"
#include "cpu/gradients/plan.h"
#include "cpu/plan.h"
#include "cpu/quantized/plan.h"
#include "cpu/runtime/scratch.h"
#include "cpu/stack_forward.h"
#include "cuda/plan.h"
#include "torch/module_stream.h"
#include "torch/python_torch.h"
#include "torch/registration.h"

namespace lstm_fused {
namespace {

#if defined(__clang__)
constexpr const char* kCompiler = "clang " __clang_version__;
#else
constexpr const char* kCompiler = "gcc " __VERSION__;
#endif

DType parse_dtype(const std::string& name) {
  for (DType dtype : {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16}) {
    if (name == dtype_name(dtype)) return dtype;
  }
  fail("dtype must be float32, float64, bfloat16 or float16, got ", name);
}

// Layers of a stack whose plan is asked for, at most: a bound of the time that making it takes, far
// beyond any stack in use.
constexpr int kMaxStackLayers = 1 << 16;

// Checked: no product of its sizes overflows.
LstmShape make_shape(int64_t steps, int64_t batch, int64_t input_size, int64_t hidden_size,
                     int64_t proj_size, int directions) {
  LSTM_CHECK(proj_size >= 0, "proj_size must be at least 0, got ", proj_size);
  const LstmShape shape = {
      steps,      batch,        input_size, hidden_size, proj_size > 0 ? proj_size : hidden_size,
      directions, proj_size > 0};
  check_shape(shape);
  return shape;
}

// 0: without options; 1: with some; 2: with layer normalisation.
void check_cell(int cell) {
  LSTM_CHECK(cell >= 0 && cell <= static_cast<int>(cpu::CellKind::kNorms),
             "cell must be 0, 1 or 2, got ", cell);
}

std::string plan_text(int64_t steps, int64_t batch, int64_t input_size, int64_t hidden_size,
                      int64_t proj_size, int directions, const std::string& dtype, int threads,
                      bool backward, std::optional<int64_t> data_rows, int cell) {
  const LstmShape shape = make_shape(steps, batch, input_size, hidden_size, proj_size, directions);
  const cpu::CpuFacts facts = cpu::cpu_facts(threads);
  const DType type = parse_dtype(dtype);
  check_cell(cell);
  if (!backward) {
    return cpu::explain_forward(shape, type, facts, static_cast<cpu::CellKind>(cell));
  }
  const int64_t rows = data_rows.value_or(shape.steps * shape.batch);
  return cpu::explain_layer_backward(shape, rows, type, facts);
}

std::string stack_text(int64_t steps, int64_t batch, int64_t input_size, int64_t hidden_size,
                       int64_t proj_size, int directions, int num_layers, const std::string& dtype,
                       int threads) {
  LSTM_CHECK(num_layers >= 1 && num_layers <= kMaxStackLayers, "num_layers must be between 1 and ",
             kMaxStackLayers, ", got ", num_layers);
  std::vector<LstmShape> layers = {
      make_shape(steps, batch, input_size, hidden_size, proj_size, directions)};
  const int64_t output_size = directions * layers.front().output_size;
  if (num_layers > 1) {
    layers.resize(num_layers,
                  make_shape(steps, batch, output_size, hidden_size, proj_size, directions));
  }
  const cpu::CpuFacts facts = cpu::cpu_facts(threads);
  const DType type = parse_dtype(dtype);
  return cpu::explain_stack(cpu::make_stack_plan(layers, type, facts), layers, type, facts);
}

std::string quantized_plan_text(int64_t steps, int64_t batch, int64_t input_size,
                                int64_t hidden_size, int64_t proj_size, int directions,
                                const std::string& weights, int threads) {
  const auto type = cpu::quantized::parse_weight_type(weights);
  const auto plan = cpu::quantized::make_quantized_plan(
      make_shape(steps, batch, input_size, hidden_size, proj_size, directions), type,
      cpu::cpu_facts(threads));
  return cpu::quantized::describe_quantized(plan, type);
}

cuda::DeviceFacts parse_facts(const std::map<std::string, int64_t>& values) {
  const auto value = [&](const char* name) {
    const auto found = values.find(name);
    LSTM_CHECK(found != values.end(), "device facts must hold ", name);
    return found->second;
  };
  // Clamps a value beyond int, so that the plan refuses it.
  const auto count = [&](const char* name) {
    const int64_t most = std::numeric_limits<int>::max();
    return static_cast<int>(std::clamp<int64_t>(value(name), -1, most));
  };
  cuda::DeviceFacts facts;
  facts.major = count("major");
  facts.minor = count("minor");
  facts.sm_count = count("sm_count");
  facts.shared_per_sm = value("shared_per_sm");
  facts.shared_per_block = value("shared_per_block");
  facts.registers_per_sm = count("registers_per_sm");
  facts.max_threads_per_sm = count("max_threads_per_sm");
  facts.l2_bytes = value("l2_bytes");
  return facts;
}

std::string cuda_plan_text(int64_t steps, int64_t batch, int64_t input_size, int64_t hidden_size,
                           int64_t proj_size, int directions, const std::string& dtype,
                           bool allow_tf32, bool training, bool backward,
                           const std::map<std::string, int64_t>& facts, bool recompute,
                           const std::string& cta_refusal, const std::string& group_refusal,
                           int cell) {
  check_cell(cell);
  const LstmShape shape = make_shape(steps, batch, input_size, hidden_size, proj_size, directions);
  const DType type = parse_dtype(dtype);
  cuda::PlanSettings settings;
  settings.allow_tf32 = allow_tf32;
  settings.training = training;
  settings.recompute = recompute;
  settings.choice = cuda::variant_choice();
  settings.cta_refusal = cta_refusal;
  settings.group_refusal = group_refusal;
  settings.facts = parse_facts(facts);
  const auto kind = static_cast<cpu::CellKind>(cell);
  if (kind != cpu::CellKind::kPlain) {
    return cuda::explain_options(shape, type, settings, kind == cpu::CellKind::kNorms, backward);
  }
  return backward ? cuda::explain_backward(shape, type, settings)
                  : cuda::explain_forward(shape, type, settings);
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (cpu::Isa isa : cpu::available_isas()) names.push_back(cpu::isa_name(isa));
  return names;
}

// Registers them as the module is loaded, before Python can ask for anything in it.
const bool registered = register_ops();

}  // namespace
}  // namespace lstm_fused

PYBIND11_MODULE(_C, m) {
  namespace py = pybind11;
  if (!lstm_fused::registered) throw py::import_error(lstm_fused::kTakenError);
  lstm_fused::set_ask_torch(lstm_fused::ask_python_torch);
  m.doc() = "Compiled part of lstm_fused; importing it registers torch.ops.lstm_fused.*";
  m.def("available_isas", &lstm_fused::available_isas,
        "Instruction sets that this build holds and this processor runs, in rising order.");
  m.def(
      "best_isa",
      [] { return std::string(lstm_fused::cpu::isa_name(lstm_fused::cpu::best_isa())); },
      "The instruction set in use: the best one, or the best that LSTM_FUSED_MAX_ISA allowed when "
      "this module was loaded.");
  m.def("set_max_isa", &lstm_fused::cpu::set_max_isa, py::arg("name"),
        "Puts an instruction set, or \"any\", in the place of LSTM_FUSED_MAX_ISA; gives the one "
        "before.");
  m.def(
      "set_cuda_variant", &lstm_fused::cuda::set_variant, py::arg("name"),
      "Puts \"auto\", \"stepwise\" or \"persistent\" in the place of LSTM_FUSED_CUDA_VARIANT, for "
      "cuda_plan_text; gives the one before.");
  lstm_fused::define_stream(m);
  m.def("release_scratch", &lstm_fused::cpu::release_scratch,
        "Frees the memory that the CPU kernels keep between calls; gives its bytes.");
  m.def(
      "compiler", [] { return std::string(lstm_fused::kCompiler); },
      "The compiler that built this.");
  m.def("plan_text", &lstm_fused::plan_text, py::arg("steps"), py::arg("batch"),
        py::arg("input_size"), py::arg("hidden_size"), py::arg("proj_size"), py::arg("directions"),
        py::arg("dtype"), py::arg("threads"), py::arg("backward"),
        py::arg("data_rows") = py::none(), py::arg("cell") = 0,
        "How a call of this shape is carried out on the CPU, in one line, and why. data_rows: the "
        "sum of the lengths, where these differ.");
  m.def("stack_text", &lstm_fused::stack_text, py::arg("steps"), py::arg("batch"),
        py::arg("input_size"), py::arg("hidden_size"), py::arg("proj_size"), py::arg("directions"),
        py::arg("num_layers"), py::arg("dtype"), py::arg("threads"),
        "How the layers of an inference on the CPU follow one another, in one line, and why.");
  m.def("quantized_plan_text", &lstm_fused::quantized_plan_text, py::arg("steps"), py::arg("batch"),
        py::arg("input_size"), py::arg("hidden_size"), py::arg("proj_size"), py::arg("directions"),
        py::arg("weights"), py::arg("threads"),
        "How a call of this shape is carried out with packed weights, in one line.");
  m.def(
      "cuda_plan_text", &lstm_fused::cuda_plan_text, py::arg("steps"), py::arg("batch"),
      py::arg("input_size"), py::arg("hidden_size"), py::arg("proj_size"), py::arg("directions"),
      py::arg("dtype"), py::arg("allow_tf32"), py::arg("training"), py::arg("backward"),
      py::arg("facts"), py::arg("recompute") = false, py::arg("cta_refusal") = "",
      py::arg("group_refusal") = "", py::arg("cell") = 0,
      "How a call of this shape is carried out on a CUDA device of these facts, which need not be "
      "there, in one line, and why. The refusals: why kernels of one block, and groups of blocks, "
      "are off there; empty where they are not.");
}
