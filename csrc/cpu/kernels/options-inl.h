// SPDX-License-Identifier: BSD-3-Clause
// The kernels of option_kernels.h.

// A vector of as many bytes as Vec<A> has lanes.
template <typename A>
struct BytesOf {
  typedef uint8_t Type __attribute__((vector_size(kWidth<A>)));
};

// 1 where a flag is set, 0 elsewhere.
template <typename A>
LSTM_INLINE Vec<A> load_flags(const uint8_t* flags, int count) {
  typename BytesOf<A>::Type bytes{};
  copy_first<kWidth<A>>(reinterpret_cast<uint8_t*>(&bytes), flags, count);
  const auto integers = __builtin_convertvector(bytes, Integers<A>);
  return integers != 0 ? broadcast(A(1)) : Vec<A>{};
}

// What the storage type keeps of a value.
template <typename S, typename A>
LSTM_INLINE Vec<A> rounded(Vec<A> v) {
  if constexpr (sizeof(S) == sizeof(A)) {
    return v;
  } else {
    const VecH half = narrow<S>(v);
    return std::is_same_v<S, BFloat16> ? widen_bf16(half) : widen_fp16(half);
  }
}

// body(kFull, column, count) for the vectors of columns [begin, end).
template <typename A, typename Body>
LSTM_INLINE void for_each_vector(int64_t begin, int64_t end, const Body& body) {
  int64_t column = begin;
  for (; column + kWidth<A> <= end; column += kWidth<A>) {
    body(std::true_type{}, column, kWidth<A>);
  }
  if (column < end) body(std::false_type{}, column, static_cast<int>(end - column));
}

// The row itself; null where the rows are absent. Steps are read through these: what a kernel
// stores might else, for all that the compiler knows, change where the next row is.
template <typename T>
LSTM_INLINE const T* row_or_null(const Rows& rows, int64_t row) {
  return rows.base ? row_pointer<T>(rows, row) : nullptr;
}
template <typename T>
LSTM_INLINE T* row_or_null(const MutableRows& rows, int64_t row) {
  return rows.base ? row_pointer<T>(rows, row) : nullptr;
}

// What a row's cell reads of the options.
template <typename S, typename A>
struct OptionRow {
  const S* peephole;  // (3, H), or null
  const uint8_t *keep_c, *keep_h;
  const S* reset_c;
  A clip, zoneout_c, zoneout_h;
  bool coupled, norm;
  int64_t hidden;

  LSTM_INLINE OptionRow make(const CellOptionRows& from, int64_t hidden, int64_t row) {
    return {static_cast<const S*>(from.peephole),
            row_or_null<uint8_t>(from.keep_c, row),
            row_or_null<uint8_t>(from.keep_h, row),
            row_or_null<S>(from.reset_c, row),
            static_cast<A>(from.options.cell_clip),
            static_cast<A>(from.options.zoneout_c),
            static_cast<A>(from.options.zoneout_h),
            from.options.coupled_gates,
            from.cell_norm != nullptr,
            hidden};
  }
};

template <bool kFull, typename S, typename A>
LSTM_INLINE OptionValues<Vec<A>> load_options(const OptionRow<S, A>& from, int64_t unit,
                                              int count) {
  using V = Vec<A>;
  OptionValues<V> to;
  to.is_coupled = from.coupled;
  to.has_norm = from.norm;
  to.has_clip = from.clip > 0;
  to.clip = broadcast(from.clip);
  to.has_peephole = from.peephole;
  if (from.peephole) {
    const S* weights = from.peephole + unit;
    to.w_ci = load_lanes<kFull, V>(weights, count);
    to.w_cf = load_lanes<kFull, V>(weights + from.hidden, count);
    to.w_co = load_lanes<kFull, V>(weights + 2 * from.hidden, count);
  }
  to.has_keep_c = from.keep_c || from.zoneout_c > 0;
  to.keep_c = from.keep_c ? load_flags<A>(from.keep_c + unit, count) : broadcast(from.zoneout_c);
  to.has_keep_h = from.keep_h || from.zoneout_h > 0;
  to.keep_h = from.keep_h ? load_flags<A>(from.keep_h + unit, count) : broadcast(from.zoneout_h);
  return to;
}

template <bool kFull, typename V, typename T>
LSTM_INLINE V load_or_zero(const T* row, int64_t column, int count) {
  return row ? load_lanes<kFull, V>(row + column, count) : V{};
}

template <bool kFull, typename A>
LSTM_INLINE void add_lanes(A* to, Vec<A> v, int count) {
  store_lanes<kFull>(to, load_lanes<kFull, Vec<A>>(to, count) + v, count);
}

// NOTE: the cell is not inlined. One copy serves all storage types, whole vectors and parts of
// them: a fifth of the code, whose compilation under sanitizers takes minutes otherwise.
template <typename A>
__attribute__((noinline)) void run_cell(const Vec<A>* pre, const Vec<A>& c_prev,
                                        const OptionValues<Vec<A>>& values,
                                        OptionCellOutput<Vec<A>>& out) {
  out = option_cell_forward<VectorMath>(pre[kInputGate], pre[kForgetGate], pre[kCellGate],
                                        pre[kOutputGate], c_prev, values);
}

template <typename A>
struct CellBackwardInputs {
  Gates<Vec<A>> gates;
  Vec<A> c, c_prev, dh, dc;
  OutputGradient<Vec<A>> normed;
};

template <typename A>
__attribute__((noinline)) void run_cell_backward(const CellBackwardInputs<A>& in,
                                                 const OptionValues<Vec<A>>& values,
                                                 OptionCellGradient<Vec<A>>& out) {
  out =
      option_cell_backward<VectorMath>(in.gates, in.c, in.c_prev, in.dh, in.dc, values, in.normed);
}

// Where a row's next state goes.
template <typename S, typename E>
struct NextStateRow {
  using A = AccumulatorOf<E>;
  bool reset;
  const S *reset_h, *mask;
  E* operand_out;
  S* storage_out;
  A* h_out;

  LSTM_INLINE NextStateRow make(const NextStateStep& from, int64_t row) {
    return {is_reset(from.reset, row),
            row_or_null<S>(from.reset_h, row),
            row_or_null<S>(from.mask, row),
            row_or_null<E>(from.operand_out, row),
            row_or_null<S>(from.storage_out, row),
            row_or_null<A>(from.h_out, row)};
  }
};

// Hands on a state h, of the storage's precision.
template <bool kFull, typename S, typename E>
LSTM_INLINE void hand_on(const NextStateRow<S, E>& to, Vec<AccumulatorOf<E>> h, int64_t column,
                         int count) {
  using A = AccumulatorOf<E>;
  using V = Vec<A>;
  if (to.reset) h = load_or_zero<kFull, V>(to.reset_h, column, count);
  if (to.h_out) store_lanes<kFull>(to.h_out + column, h, count);
  if (to.mask) {
    // NOTE: rounded to storage, in which the weights' gradient multiplies it too.
    h = rounded<S, A>(h * load_lanes<kFull, V>(to.mask + column, count));
  }
  if (to.operand_out) store_lanes<kFull>(to.operand_out + column, h, count);
  if (to.storage_out) store_lanes<kFull>(to.storage_out + column, h, count);
}

template <typename S, typename E>
void option_forward(const OptionForwardStep& step) {
  using A = AccumulatorOf<E>;
  using V = Vec<A>;
  const int64_t begin = step.begin, end = step.end, hidden = step.hidden_size;
  for (int64_t row = 0; row < step.rows; ++row) {
    const bool reset = is_reset(step.next_reset, row);
    const auto options = OptionRow<S, A>::make(step.options, hidden, row);
    const auto next_state = NextStateRow<S, E>::make(step.next_state, row);
    const A* pre_row = row_pointer<A>(step.preactivations, row) - begin * kGates;
    const A* h_prev_row = row_or_null<A>(step.h_prev, row);
    A* c_row = static_cast<A*>(step.c) + row * hidden;
    A* parts_row = row_or_null<A>(step.output_parts, row);
    E* cell_output_row = row_or_null<E>(step.cell_output, row);
    S* y_row = row_or_null<S>(step.y, row);
    S* gate_row = row_or_null<S>(step.gates, row);
    A* cells_row = row_or_null<A>(step.cells, row);
    S* cell_states_row = row_or_null<S>(step.cell_states, row);
    for_each_vector<A>(begin, end, [&](auto full, int64_t unit, int count) {
      constexpr bool kFull = decltype(full)::value;
      V pre[kGates];
#pragma GCC unroll 4
      for (int g = 0; g < kGates; ++g) {
        pre[g] = load_unaligned<V>(pre_row + unit * kGates + g * kWidth<A>);
      }
      const OptionValues<V> values = load_options<kFull>(options, unit, count);
      const V c_prev = load_lanes<kFull, V>(c_row + unit, count);
      OptionCellOutput<V> out;
      run_cell<A>(pre, c_prev, values, out);

      // Hand c to the next step.
      V next = out.c;
      if (reset) next = load_or_zero<kFull, V>(options.reset_c, unit, count);
      store_lanes<kFull>(c_row + unit, next, count);

      // Make h, and hand it on; with a norm leave that to normalised_output.
      if (parts_row) {
        store_lanes<kFull>(parts_row + unit, out.gates.o, count);
        store_lanes<kFull>(parts_row + hidden + unit, out.candidate, count);
      } else if (cell_output_row) {
        store_lanes<kFull>(cell_output_row + unit, rounded<S, A>(out.cell_output), count);
      } else {
        V h = out.cell_output;
        if (values.has_keep_h) {
          const V h_prev = load_lanes<kFull, V>(h_prev_row + unit, count);
          h = multiply_add(values.keep_h, h_prev, (1 - values.keep_h) * h);
        }
        store_lanes<kFull>(y_row + unit, h, count);
        hand_on<kFull>(next_state, rounded<S, A>(h), unit, count);
      }

      // Write what the backward needs, and what else the caller sees.
      if (gate_row) {
        const V all[kGates] = {out.gates.i, out.gates.f, out.gates.g, out.gates.o};
#pragma GCC unroll 4
        for (int g = 0; g < kGates; ++g) {
          store_lanes<kFull>(gate_row + g * hidden + unit, all[g], count);
        }
      }
      if (cells_row) store_lanes<kFull>(cells_row + unit, out.c, count);
      if (cell_states_row) store_lanes<kFull>(cell_states_row + unit, out.c, count);
    });
  }
}

template <typename S, typename E>
void next_state(const NextStateStep& step) {
  using A = AccumulatorOf<E>;
  for (int64_t row = 0; row < step.rows; ++row) {
    const auto to = NextStateRow<S, E>::make(step, row);
    const S* from = row_pointer<S>(step.y, row);
    for_each_vector<A>(step.begin, step.end, [&](auto full, int64_t column, int count) {
      constexpr bool kFull = decltype(full)::value;
      hand_on<kFull>(to, load_lanes<kFull, Vec<A>>(from + column, count), column, count);
    });
  }
}

// What a row's gradient of h is made of; columns of the product count from the step's first one.
template <typename S, typename A>
struct StateGradientRow {
  bool reset;
  const A *product, *carry;
  const S* mask;
  A* grad_reset;
  const S* addends[2];

  LSTM_INLINE StateGradientRow make(const StateGradientStep& from, int64_t row) {
    return {is_reset(from.reset, row),
            row_or_null<A>(from.product, row),
            row_or_null<A>(from.carry, row),
            row_or_null<S>(from.mask, row),
            row_or_null<A>(from.grad_reset, row),
            {row_or_null<S>(from.addends[0], row), row_or_null<S>(from.addends[1], row)}};
  }
};

template <bool kFull, typename S, typename A>
LSTM_INLINE Vec<A> sum_state_gradient(const StateGradientRow<S, A>& from, int64_t begin,
                                      int64_t column, int count) {
  using V = Vec<A>;
  V dh{};
  if (from.product) {
    // NOTE: in whole vectors, as linear_step writes them.
    dh = load_unaligned<V>(from.product + column - begin);
    if (from.mask) dh *= load_lanes<kFull, V>(from.mask + column, count);
  }
  if (from.carry) dh += load_lanes<kFull, V>(from.carry + column, count);
  if (from.reset) {
    if (from.grad_reset) add_lanes<kFull, A>(from.grad_reset + column, dh, count);
    dh = V{};
  }
  for (const S* addend : from.addends) {
    if (addend) dh += load_lanes<kFull, V>(addend + column, count);
  }
  return dh;
}

template <typename S, typename E>
void state_gradient(const StateGradientStep& step) {
  using A = AccumulatorOf<E>;
  const int64_t begin = step.begin;
  for (int64_t row = 0; row < step.rows; ++row) {
    const auto from = StateGradientRow<S, A>::make(step, row);
    A* accumulator_out = row_or_null<A>(step.accumulator_out, row);
    S* storage_out = row_or_null<S>(step.storage_out, row);
    E* operand_out = row_or_null<E>(step.operand_out, row);
    for_each_vector<A>(begin, step.end, [&](auto full, int64_t column, int count) {
      constexpr bool kFull = decltype(full)::value;
      const Vec<A> dh = sum_state_gradient<kFull>(from, begin, column, count);
      if (accumulator_out) store_unaligned(accumulator_out + column - begin, dh);
      if (storage_out) store_lanes<kFull>(storage_out + column, dh, count);
      if (operand_out) store_lanes<kFull>(operand_out + column, rounded<S, A>(dh), count);
    });
  }
}

template <typename S, typename E>
void option_backward(const OptionBackwardStep& step) {
  using A = AccumulatorOf<E>;
  using V = Vec<A>;
  const int64_t begin = step.begin, end = step.end, hidden = step.hidden_size;
  for (int64_t row = 0; row < step.rows; ++row) {
    const bool reset = is_reset(step.reset, row);
    const auto options = OptionRow<S, A>::make(step.options, hidden, row);
    const auto state = StateGradientRow<S, A>::make(step.state, row);
    const A* dh_row = row_or_null<A>(step.dh, row);
    const S* grad_states_row = row_or_null<S>(step.grad_cell_states, row);
    const S* gate_row = row_pointer<S>(step.gates, row);
    const A* c_in_row = row_pointer<A>(step.cells, row);
    const A* c_prev_row = row_pointer<A>(step.c_prev, row);
    const A* normed_row = row_or_null<A>(step.output_gradients, row);
    A* dc_row = static_cast<A*>(step.dc) + row * hidden;
    A* grad_reset_row = row_or_null<A>(step.grad_reset_c, row);
    A* carry_row = row_or_null<A>(step.carry, row);
    S* cell_output_row = options.norm ? nullptr : row_or_null<S>(step.cell_output, row);
    A* activations_row = row_or_null<A>(step.grad_activations, row);
    S* grad_row = row_or_null<S>(step.grad_gates, row);
    E* operand_row = row_or_null<E>(step.operand_out, row);
    A* peephole_row = row_or_null<A>(step.grad_peephole, row);
    for_each_vector<A>(begin, end, [&](auto full, int64_t unit, int count) {
      constexpr bool kFull = decltype(full)::value;
      CellBackwardInputs<A> in;
      in.dh = dh_row ? load_unaligned<V>(dh_row + unit - begin)
                     : sum_state_gradient<kFull>(state, begin, unit, count);
      in.dc = load_lanes<kFull, V>(dc_row + unit, count) +
              load_or_zero<kFull, V>(grad_states_row, unit, count);
      const S* from = gate_row + unit;
      in.gates = {load_lanes<kFull, V>(from + kInputGate * hidden, count),
                  load_lanes<kFull, V>(from + kForgetGate * hidden, count),
                  load_lanes<kFull, V>(from + kCellGate * hidden, count),
                  load_lanes<kFull, V>(from + kOutputGate * hidden, count)};
      in.c = load_lanes<kFull, V>(c_in_row + unit, count);
      in.c_prev = reset ? load_or_zero<kFull, V>(options.reset_c, unit, count)
                        : load_lanes<kFull, V>(c_prev_row + unit, count);
      const OptionValues<V> values = load_options<kFull>(options, unit, count);
      in.normed = OutputGradient<V>{};
      if (normed_row) {
        in.normed = OutputGradient<V>{load_lanes<kFull, V>(normed_row + unit, count),
                                      load_lanes<kFull, V>(normed_row + hidden + unit, count)};
      }
      OptionCellGradient<V> grad;
      run_cell_backward<A>(in, values, grad);

      // What goes to the step before, or to the state that a reset put in its place.
      if (reset && grad_reset_row) {
        add_lanes<kFull, A>(grad_reset_row + unit, grad.c_prev, count);
      }
      store_lanes<kFull>(dc_row + unit, reset ? V{} : grad.c_prev, count);
      if (carry_row) store_lanes<kFull>(carry_row + unit, grad.h_kept, count);

      if (cell_output_row) store_lanes<kFull>(cell_output_row + unit, grad.cell_output, count);
      const V all[kGates] = {grad.gates.i, grad.gates.f, grad.gates.g, grad.gates.o};
#pragma GCC unroll 4
      for (int g = 0; g < kGates; ++g) {
        const int64_t column = g * hidden + unit;
        if (activations_row) {
          store_lanes<kFull>(activations_row + column, all[g], count);
        } else {
          store_lanes<kFull>(grad_row + column, all[g], count);
          store_lanes<kFull>(operand_row + column, all[g], count);
        }
      }
      if (peephole_row) {
        add_lanes<kFull, A>(peephole_row + unit, grad.w_ci, count);
        add_lanes<kFull, A>(peephole_row + hidden + unit, grad.w_cf, count);
        add_lanes<kFull, A>(peephole_row + 2 * hidden + unit, grad.w_co, count);
      }
    });
  }
}
