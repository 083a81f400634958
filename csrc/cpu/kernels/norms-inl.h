// SPDX-License-Identifier: BSD-3-Clause
// The kernels of option_kernels.h that layer normalisation adds. They see whole rows.

// NOTE: not std::sqrt, an inline function of everybody's that must not be compiled for this ISA.
LSTM_INLINE float square_root(float value) { return __builtin_sqrtf(value); }
LSTM_INLINE double square_root(double value) { return __builtin_sqrt(value); }

template <typename A>
LSTM_INLINE A sum_lanes(Vec<A> v) {
  A sum = 0;
  for (int lane = 0; lane < kWidth<A>; ++lane) sum += v[lane];
  return sum;
}

// The first `count` lanes; the others are zero.
template <typename A>
LSTM_INLINE Vec<A> keep_first(Vec<A> v, int count) {
  A lanes[kWidth<A>];
  store_unaligned(lanes, v);
  return load_first<Vec<A>>(lanes, count);
}

template <typename A>
struct Statistics {
  A mean, scale;  // scale: 1 / sqrt(var + kNormEpsilon)
};

// The statistics of a row's columns [0, columns), which at(kFull, column, count) loads; in two
// passes.
template <typename A, typename At>
LSTM_INLINE Statistics<A> statistics(int64_t columns, const At& at) {
  Vec<A> sum{}, squares{};
  for_each_vector<A>(0, columns,
                     [&](auto full, int64_t column, int count) { sum += at(full, column, count); });
  const A mean = sum_lanes<A>(sum) / static_cast<A>(columns);
  for_each_vector<A>(0, columns, [&](auto full, int64_t column, int count) {
    Vec<A> d = at(full, column, count) - mean;
    if constexpr (!decltype(full)::value) d = keep_first<A>(d, count);
    squares = multiply_add(d, d, squares);
  });
  const A variance = sum_lanes<A>(squares) / static_cast<A>(columns);
  return {mean, 1 / square_root(variance + static_cast<A>(kNormEpsilon))};
}

// The statistics of a row of products in gate order, whose lanes past H are zero.
template <typename A>
LSTM_INLINE Statistics<A> gate_statistics(const A* row, int64_t hidden) {
  constexpr int64_t panel = kGates * kWidth<A>;
  Vec<A> sum{}, squares{};
  const int64_t size = (hidden + kWidth<A> - 1) / kWidth<A> * panel;
  for (int64_t i = 0; i < size; i += kWidth<A>) sum += load_unaligned<Vec<A>>(row + i);
  const A count = static_cast<A>(kGates * hidden);
  const A mean = sum_lanes<A>(sum) / count;
  for_each_vector<A>(0, hidden, [&](auto full, int64_t unit, int lanes) {
    for (int g = 0; g < kGates; ++g) {
      Vec<A> d = load_unaligned<Vec<A>>(row + unit * kGates + g * kWidth<A>) - mean;
      if constexpr (!decltype(full)::value) d = keep_first<A>(d, lanes);
      squares = multiply_add(d, d, squares);
    }
  });
  return {mean, 1 / square_root(sum_lanes<A>(squares) / count + static_cast<A>(kNormEpsilon))};
}

template <typename S, typename E>
void normalise_gates(const NormaliseGatesStep& step) {
  using A = AccumulatorOf<E>;
  using V = Vec<A>;
  const int64_t hidden = step.hidden_size, gates = kGates * hidden;
  const S* gains = static_cast<const S*>(step.gains);
  const A* bias = static_cast<const A*>(step.bias);
  for (int64_t row = 0; row < step.rows; ++row) {
    const A* from[kNorms] = {row_pointer<A>(step.input, row), row_pointer<A>(step.recurrent, row)};
    const Statistics<A> of[kNorms] = {gate_statistics<A>(from[0], hidden),
                                      gate_statistics<A>(from[1], hidden)};
    A* out = row_pointer<A>(step.out, row);
    S* saved = step.normalised.base ? row_pointer<S>(step.normalised, row) : nullptr;
    for_each_vector<A>(0, hidden, [&](auto full, int64_t unit, int count) {
      constexpr bool kFull = decltype(full)::value;
      for (int g = 0; g < kGates; ++g) {
        const int64_t at = unit * kGates + g * kWidth<A>, column = g * hidden + unit;
        V sum = load_unaligned<V>(bias + at);
        for (int i = 0; i < kNorms; ++i) {
          const V normal = (load_unaligned<V>(from[i] + at) - of[i].mean) * of[i].scale;
          sum = multiply_add(load_lanes<kFull, V>(gains + i * gates + column, count), normal, sum);
          if (saved) store_lanes<kFull>(saved + i * gates + column, normal, count);
        }
        store_unaligned(out + at, sum);
      }
    });
    if (step.scales.base) {
      A* scales = row_pointer<A>(step.scales, row);
      for (int i = 0; i < kNorms; ++i) scales[i] = of[i].scale;
    }
  }
}

template <typename S, typename E>
void normalised_output(const NormalisedOutputStep& step) {
  using A = AccumulatorOf<E>;
  using V = Vec<A>;
  const int64_t hidden = step.hidden_size;
  const S* gain = static_cast<const S*>(step.options.cell_norm);
  for (int64_t row = 0; row < step.rows; ++row) {
    const auto options = OptionRow<S, A>::make(step.options, hidden, row);
    const A* o = row_pointer<A>(step.output_parts, row);
    const A* c = o + hidden;
    const auto load = [&](auto full, int64_t unit, int count) {
      return load_lanes<decltype(full)::value, V>(c + unit, count);
    };
    const Statistics<A> of = statistics<A>(hidden, load);
    for_each_vector<A>(0, hidden, [&](auto full, int64_t unit, int count) {
      constexpr bool kFull = decltype(full)::value;
      const V normal = (load(full, unit, count) - of.mean) * of.scale;
      const V shown = multiply_add(load_lanes<kFull, V>(gain + unit, count), normal,
                                   load_lanes<kFull, V>(gain + hidden + unit, count));
      V h = load_lanes<kFull, V>(o + unit, count) * VectorMath::tanh(shown);
      if (step.cell_output.base) {
        store_lanes<kFull>(row_pointer<E>(step.cell_output, row) + unit, rounded<S, A>(h), count);
        return;
      }
      const OptionValues<V> values = load_options<kFull>(options, unit, count);
      if (values.has_keep_h) {
        const V h_prev = load_lanes<kFull, V>(row_pointer<A>(step.h_prev, row) + unit, count);
        h = multiply_add(values.keep_h, h_prev, (1 - values.keep_h) * h);
      }
      store_lanes<kFull>(row_pointer<S>(step.y, row) + unit, h, count);
    });
  }
}

// From the gradient of h to those of o's pre-activation and, through the norm, of c̃.
template <typename S, typename E>
void output_backward(const OptionBackwardStep& step) {
  using A = AccumulatorOf<E>;
  using V = Vec<A>;
  const int64_t hidden = step.hidden_size;
  const S* gain = static_cast<const S*>(step.options.cell_norm);
  for (int64_t row = 0; row < step.rows; ++row) {
    const bool reset = is_reset(step.reset, row);
    const auto options = OptionRow<S, A>::make(step.options, hidden, row);
    const S* gate_row = row_pointer<S>(step.gates, row);
    A* to_o = row_pointer<A>(step.output_gradients, row);
    A* to_c = to_o + hidden;       // c̃, then its gradient
    A* to_normal = to_c + hidden;  // the gradient of n(c̃)

    // Find c̃ and its statistics.
    for_each_vector<A>(0, hidden, [&](auto full, int64_t unit, int count) {
      constexpr bool kFull = decltype(full)::value;
      const S* from = gate_row + unit;
      const Gates<V> gates = {load_lanes<kFull, V>(from + kInputGate * hidden, count),
                              load_lanes<kFull, V>(from + kForgetGate * hidden, count),
                              load_lanes<kFull, V>(from + kCellGate * hidden, count),
                              load_lanes<kFull, V>(from + kOutputGate * hidden, count)};
      const V c = load_lanes<kFull, V>(row_pointer<A>(step.cells, row) + unit, count);
      const V c_prev = reset ? load_or_zero<kFull, V>(options.reset_c, unit, count)
                             : load_lanes<kFull, V>(row_pointer<A>(step.c_prev, row) + unit, count);
      const OptionValues<V> values = load_options<kFull>(options, unit, count);
      store_lanes<kFull>(to_c + unit, rebuild_candidate<VectorMath>(gates, c, c_prev, values),
                         count);
    });
    const Statistics<A> of = statistics<A>(hidden, [&](auto full, int64_t unit, int count) {
      return load_lanes<decltype(full)::value, V>(to_c + unit, count);
    });

    // Go through o and tanh, to the gradient of n(c̃), and sum that up.
    V sum{}, product{};
    for_each_vector<A>(0, hidden, [&](auto full, int64_t unit, int count) {
      constexpr bool kFull = decltype(full)::value;
      const OptionValues<V> values = load_options<kFull>(options, unit, count);
      V dh = load_unaligned<V>(row_pointer<A>(step.dh, row) + unit);
      if (values.has_keep_h) dh = dh * (1 - values.keep_h);
      const V o = load_lanes<kFull, V>(gate_row + kOutputGate * hidden + unit, count);
      const V gain_c = load_lanes<kFull, V>(gain + unit, count);
      V normal = (load_lanes<kFull, V>(to_c + unit, count) - of.mean) * of.scale;
      if constexpr (!kFull) normal = keep_first<A>(normal, count);
      const V tanh_shown = VectorMath::tanh(
          multiply_add(gain_c, normal, load_lanes<kFull, V>(gain + hidden + unit, count)));
      V d_shown = dh * o * ((1 - tanh_shown) * (1 + tanh_shown));
      if constexpr (!kFull) d_shown = keep_first<A>(d_shown, count);
      store_lanes<kFull>(to_o + unit, dh * tanh_shown * o * (1 - o), count);
      if (step.cell_output.base) {
        store_lanes<kFull>(row_pointer<S>(step.cell_output, row) + unit, o * tanh_shown, count);
      }
      if (step.grad_cell_norm.base) {
        A* grad = row_pointer<A>(step.grad_cell_norm, row) + unit;
        add_lanes<kFull, A>(grad, d_shown * normal, count);
        add_lanes<kFull, A>(grad + hidden, d_shown, count);
      }
      const V d_normal = d_shown * gain_c;
      sum += d_normal;
      product = multiply_add(d_normal, normal, product);
      store_lanes<kFull>(to_normal + unit, d_normal, count);
      store_lanes<kFull>(to_c + unit, normal, count);
    });

    // Go through the norm.
    const A mean = sum_lanes<A>(sum) / static_cast<A>(hidden);
    const A slope = sum_lanes<A>(product) / static_cast<A>(hidden);
    for_each_vector<A>(0, hidden, [&](auto full, int64_t unit, int count) {
      constexpr bool kFull = decltype(full)::value;
      const V normal = load_lanes<kFull, V>(to_c + unit, count);
      const V d_normal = load_lanes<kFull, V>(to_normal + unit, count);
      store_lanes<kFull>(to_c + unit, of.scale * (d_normal - mean - normal * slope), count);
    });
  }
}

template <typename S, typename E>
void gates_backward(const GatesBackwardStep& step) {
  using A = AccumulatorOf<E>;
  using V = Vec<A>;
  const int64_t gates = kGates * step.hidden_size;
  const S* gains = static_cast<const S*>(step.gains);
  for (int64_t row = 0; row < step.rows; ++row) {
    const A* grad_row = row_pointer<A>(step.grad_activations, row);
    const S* normal_row = row_pointer<S>(step.normalised, row);
    const A* scales = row_pointer<A>(step.scales, row);
    if (step.grad_bias.base) {
      A* bias = row_pointer<A>(step.grad_bias, row);
      for_each_vector<A>(0, gates, [&](auto full, int64_t column, int count) {
        constexpr bool kFull = decltype(full)::value;
        add_lanes<kFull, A>(bias + column, load_lanes<kFull, V>(grad_row + column, count), count);
      });
    }
    for (int i = 0; i < kNorms; ++i) {
      const S* normals = normal_row + i * gates;
      const S* gain = gains + i * gates;
      A* grad_gain =
          step.grad_gains.base ? row_pointer<A>(step.grad_gains, row) + i * gates : nullptr;
      V sum{}, product{};
      for_each_vector<A>(0, gates, [&](auto full, int64_t column, int count) {
        constexpr bool kFull = decltype(full)::value;
        const V grad = load_lanes<kFull, V>(grad_row + column, count);
        const V normal = load_lanes<kFull, V>(normals + column, count);
        if (grad_gain) add_lanes<kFull, A>(grad_gain + column, grad * normal, count);
        const V d_normal = grad * load_lanes<kFull, V>(gain + column, count);
        sum += d_normal;
        product = multiply_add(d_normal, normal, product);
      });
      const A mean = sum_lanes<A>(sum) / static_cast<A>(gates);
      const A slope = sum_lanes<A>(product) / static_cast<A>(gates);
      S* out = row_pointer<S>(i == 0 ? step.grad_input : step.grad_recurrent, row);
      E* operand = i == 0 ? nullptr : row_pointer<E>(step.operand_out, row);
      for_each_vector<A>(0, gates, [&](auto full, int64_t column, int count) {
        constexpr bool kFull = decltype(full)::value;
        const V d_normal = load_lanes<kFull, V>(grad_row + column, count) *
                           load_lanes<kFull, V>(gain + column, count);
        const V normal = load_lanes<kFull, V>(normals + column, count);
        const V grad = scales[i] * (d_normal - mean - normal * slope);
        store_lanes<kFull>(out + column, grad, count);
        if (operand) store_lanes<kFull>(operand + column, grad, count);
      });
    }
  }
}

template <typename S, typename E>
const OptionKernels& option_kernels() {
  static const OptionKernels kernels = {
      normalise_gates<S, E>, option_forward<S, E>,  normalised_output<S, E>, next_state<S, E>,
      state_gradient<S, E>,  output_backward<S, E>, option_backward<S, E>,   gates_backward<S, E>};
  return kernels;
}
