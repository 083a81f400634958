// SPDX-License-Identifier: BSD-3-Clause
// lstm_fused._C.Stream: a stream of raw addresses, for lstm_fused/stream.py, which checks tensors.
//
// NOTE: no op. Through torch's dispatcher a step of a small LSTM takes several times as long as its
// kernel; and a stream's state is no tensor that torch should trace.
#include "torch/module_stream.h"

#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "common/error.h"
#include "cpu/stream/file.h"
#include "cpu/stream/stream.h"
#include "torch/guard.h"
#include "torch/torch_parallel.h"

namespace lstm_fused {
namespace {

namespace py = pybind11;
using cpu::Stream;
using cpu::StreamModel;
using Address = uintptr_t;

// Sizes D, H, P and the addresses of w_ih, w_hh, b_ih, b_hh, w_hr, of which the last three may be
// 0.
using LayerTuple = std::tuple<int64_t, int64_t, int64_t, std::array<Address, 5>>;
// Packed weights: address and bytes.
using PackedTuple = std::pair<Address, int64_t>;

template <typename T = void>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);  // NOLINT: what the Python side hands over
}

DType dtype_of(const std::string& name) {
  for (DType dtype : {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16}) {
    if (name == dtype_name(dtype)) return dtype;
  }
  fail("a stream's dtype must be float32, float64, bfloat16 or float16, got ", name);
}

// A stream, and whether a thread is in one of its calls without Python's lock.
class PyStream {
 public:
  explicit PyStream(std::unique_ptr<Stream> stream) : stream_(std::move(stream)) {}

  static std::unique_ptr<PyStream> make(const std::string& dtype,
                                        const std::vector<LayerTuple>& layers, int64_t batch) {
    std::vector<cpu::StreamLayerWeights> weights;
    for (const auto& [input_size, hidden_size, output_size, at] : layers) {
      weights.push_back(
          {input_size,
           hidden_size,
           output_size,
           {pointer(at[0]), pointer(at[1]), pointer(at[2]), pointer(at[3]), pointer(at[4])}});
    }
    auto model = std::make_shared<const StreamModel>(dtype_of(dtype), weights,
                                                     cpu::StreamHeadWeights{}, torch_parallel());
    return std::make_unique<PyStream>(std::make_unique<Stream>(std::move(model), batch));
  }

  static std::unique_ptr<PyStream> make_packed(const std::vector<PackedTuple>& layers,
                                               int64_t batch) {
    std::vector<cpu::StreamPackedWeights> weights;
    weights.reserve(layers.size());
    for (const auto& [block, bytes] : layers) {
      LSTM_CHECK(block != 0, "a stream takes packed weights that have memory, got none");
      weights.push_back({pointer(block), bytes});
    }
    auto model =
        std::make_shared<const StreamModel>(weights, cpu::StreamHeadWeights{}, torch_parallel());
    return std::make_unique<PyStream>(std::make_unique<Stream>(std::move(model), batch));
  }

  static std::unique_ptr<PyStream> open(std::string_view bytes, int64_t batch) {
    auto model = cpu::read_stream_file(bytes.data(), bytes.size(), torch_parallel());
    return std::make_unique<PyStream>(std::make_unique<Stream>(std::move(model), batch));
  }

  std::unique_ptr<PyStream> clone() const {
    refuse_busy();
    return std::make_unique<PyStream>(std::make_unique<Stream>(*stream_));
  }

  // NOTE: keeps Python's lock, which costs as much to give back as a small step takes.
  void step(Address x, Address y) {
    refuse_busy();
    refuse_null(x, y);
    stream_->step(pointer(x), pointer(y));
  }
  void run(int64_t steps, Address x, Address y) {
    refuse_busy();
    if (steps > 0) refuse_null(x, y);
    is_busy_ = true;
    {
      const py::gil_scoped_release release;
      stream_->run(steps, pointer(x), pointer(y));
    }
    is_busy_ = false;
  }
  void reset(Address mask) {
    refuse_busy();
    stream_->reset(pointer<const uint8_t>(mask));
  }
  void copy_state(const PyStream& other) {
    refuse_busy();
    other.refuse_busy();
    LSTM_CHECK(stream_->batch() == other.stream_->batch() && sizes() == other.sizes() &&
                   stream_->model().dtype() == other.stream_->model().dtype(),
               "a stream takes the state of one of its own sizes, batch and dtype, got another");
    stream_->copy_state(*other.stream_);
  }
  void get_state(int64_t layer, Address h, Address c) const {
    refuse_busy();
    refuse_null(h, c);
    refuse_layer(layer);
    stream_->get_state(layer, pointer(h), pointer(c));
  }
  void set_state(int64_t layer, Address h, Address c) {
    refuse_busy();
    refuse_null(h, c);
    refuse_layer(layer);
    stream_->set_state(layer, pointer(h), pointer(c));
  }
  // D, O, and H and P of each layer.
  std::tuple<int64_t, int64_t, std::vector<std::pair<int64_t, int64_t>>> sizes() const {
    std::vector<std::pair<int64_t, int64_t>> states;
    for (const StreamModel::Layer& layer : stream_->model().layers()) {
      states.emplace_back(layer.hidden_size, layer.output_size);
    }
    return {stream_->model().input_size(), stream_->model().output_size(), states};
  }

 private:
  void refuse_busy() const {
    LSTM_CHECK(!is_busy_,
               "a stream serves one thread at a time, and another one is in its run(); "
               "give each thread a stream of its own by clone()");
  }

  static void refuse_null(Address a, Address b) {
    LSTM_CHECK(a != 0 && b != 0,
               "a stream takes tensors that have memory, got one without: its storage was freed");
  }

  void refuse_layer(int64_t layer) const {
    const auto layers = static_cast<int64_t>(stream_->model().layers().size());
    LSTM_CHECK(layer >= 0 && layer < layers, "layer must be between 0 and ", layers - 1, ", got ",
               layer);
  }

  const std::unique_ptr<Stream> stream_;
  bool is_busy_ = false;  // read and written under Python's lock
};

}  // namespace

void define_stream(py::module_& m) {
  py::class_<PyStream>(m, "Stream", "A stack of layers taken through time; see lstm_fused.stream.")
      .def(py::init(
               [](const std::string& dtype, const std::vector<LayerTuple>& layers, int64_t batch) {
                 return in_torchs_words([&] { return PyStream::make(dtype, layers, batch); });
               }),
           py::arg("dtype"), py::arg("layers"), py::arg("batch"))
      .def_static(
          "open",
          [](const py::bytes& data, int64_t batch) {
            return in_torchs_words([&] { return PyStream::open(std::string_view(data), batch); });
          },
          py::arg("data"), py::arg("batch"))
      .def_static(
          "packed",
          [](const std::vector<PackedTuple>& layers, int64_t batch) {
            return in_torchs_words([&] { return PyStream::make_packed(layers, batch); });
          },
          py::arg("layers"), py::arg("batch"))
      .def("clone", [](const PyStream& s) { return in_torchs_words([&] { return s.clone(); }); })
      .def("step", &PyStream::step, py::arg("x"), py::arg("y"))
      .def("run", &PyStream::run, py::arg("steps"), py::arg("x"), py::arg("y"))
      .def("reset", &PyStream::reset, py::arg("mask"))
      .def("copy_state", &PyStream::copy_state, py::arg("other"))
      .def("get_state", &PyStream::get_state, py::arg("layer"), py::arg("h"), py::arg("c"))
      .def("set_state", &PyStream::set_state, py::arg("layer"), py::arg("h"), py::arg("c"))
      .def("sizes", &PyStream::sizes);
}

}  // namespace lstm_fused
