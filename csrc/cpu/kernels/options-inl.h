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

template <bool kFull, typename S, typename A>
LSTM_INLINE OptionValues<Vec<A>> load_options(const CellOptionRows& from, int64_t hidden,
                                              int64_t row, int64_t unit, int count) {
  using V = Vec<A>;
  OptionValues<V> to;
  to.is_coupled = from.options.coupled_gates;
  to.has_clip = from.options.cell_clip > 0;
  to.clip = broadcast(static_cast<A>(from.options.cell_clip));
  to.has_peephole = from.peephole;
  if (from.peephole) {
    const S* weights = static_cast<const S*>(from.peephole) + unit;
    to.w_ci = load_lanes<kFull, V>(weights, count);
    to.w_cf = load_lanes<kFull, V>(weights + hidden, count);
    to.w_co = load_lanes<kFull, V>(weights + 2 * hidden, count);
  }
  to.has_norm = from.cell_norm;
  to.has_keep_c = from.keep_c.base || from.options.zoneout_c > 0;
  to.keep_c = broadcast(static_cast<A>(from.options.zoneout_c));
  if (from.keep_c.base) {
    to.keep_c = load_flags<A>(row_pointer<uint8_t>(from.keep_c, row) + unit, count);
  }
  to.has_keep_h = from.keep_h.base || from.options.zoneout_h > 0;
  to.keep_h = broadcast(static_cast<A>(from.options.zoneout_h));
  if (from.keep_h.base) {
    to.keep_h = load_flags<A>(row_pointer<uint8_t>(from.keep_h, row) + unit, count);
  }
  return to;
}

template <bool kFull, typename S, typename A>
LSTM_INLINE Vec<A> load_or_zero(const Rows& rows, int64_t row, int64_t column, int count) {
  if (!rows.base) return Vec<A>{};
  return load_lanes<kFull, Vec<A>>(row_pointer<S>(rows, row) + column, count);
}

template <bool kFull, typename A>
LSTM_INLINE void add_lanes(A* to, Vec<A> v, int count) {
  store_lanes<kFull>(to, load_lanes<kFull, Vec<A>>(to, count) + v, count);
}

template <typename S, typename E>
void option_forward(const OptionForwardStep& step) {
  using A = AccumulatorOf<E>;
  using V = Vec<A>;
  const int64_t hidden = step.hidden_size;
  for (int64_t row = 0; row < step.rows; ++row) {
    const bool reset = is_reset(step.next_reset, row);
    const A* pre_row = row_pointer<A>(step.preactivations, row) - step.begin * kGates;
    A* c_row = static_cast<A*>(step.c) + row * hidden;
    for_each_vector<A>(step.begin, step.end, [&](auto full, int64_t unit, int count) {
      constexpr bool kFull = decltype(full)::value;
      V pre[kGates];
#pragma GCC unroll 4
      for (int g = 0; g < kGates; ++g) {
        pre[g] = load_unaligned<V>(pre_row + unit * kGates + g * kWidth<A>);
      }
      const OptionValues<V> values =
          load_options<kFull, S, A>(step.options, hidden, row, unit, count);
      const V c_prev = load_lanes<kFull, V>(c_row + unit, count);
      const OptionCellOutput<V> out = option_cell_forward<VectorMath>(
          pre[kInputGate], pre[kForgetGate], pre[kCellGate], pre[kOutputGate], c_prev, values);

      // Hand the state to the next step.
      V next = out.c;
      if (reset) next = load_or_zero<kFull, S, A>(step.options.reset_c, row, unit, count);
      store_lanes<kFull>(c_row + unit, next, count);

      if (values.has_norm) {
        A* parts = row_pointer<A>(step.output_parts, row) + unit;
        store_lanes<kFull>(parts, out.gates.o, count);
        store_lanes<kFull>(parts + hidden, out.candidate, count);
      }

      // Write what the caller sees and what the backward needs.
      if (step.cell_output.base && !values.has_norm) {
        const V h = rounded<S, A>(out.cell_output);
        store_lanes<kFull>(row_pointer<E>(step.cell_output, row) + unit, h, count);
      }
      if (step.y.base && !values.has_norm) {
        V h = out.cell_output;
        if (values.has_keep_h) {
          const V h_prev = load_lanes<kFull, V>(row_pointer<A>(step.h_prev, row) + unit, count);
          h = multiply_add(values.keep_h, h_prev, (1 - values.keep_h) * h);
        }
        store_lanes<kFull>(row_pointer<S>(step.y, row) + unit, h, count);
      }
      if (step.gates.base) {
        S* gate_row = row_pointer<S>(step.gates, row) + unit;
        const V all[kGates] = {out.gates.i, out.gates.f, out.gates.g, out.gates.o};
#pragma GCC unroll 4
        for (int g = 0; g < kGates; ++g) {
          store_lanes<kFull>(gate_row + g * hidden, all[g], count);
        }
      }
      if (step.cells.base) {
        store_lanes<kFull>(row_pointer<A>(step.cells, row) + unit, out.c, count);
      }
      if (step.cell_states.base) {
        store_lanes<kFull>(row_pointer<S>(step.cell_states, row) + unit, out.c, count);
      }
    });
  }
}

template <typename S, typename E>
void next_state(const NextStateStep& step) {
  using A = AccumulatorOf<E>;
  using V = Vec<A>;
  for (int64_t row = 0; row < step.rows; ++row) {
    const Rows& from = is_reset(step.reset, row) ? step.reset_h : step.y;
    for_each_vector<A>(step.begin, step.end, [&](auto full, int64_t column, int count) {
      constexpr bool kFull = decltype(full)::value;
      V h = load_or_zero<kFull, S, A>(from, row, column, count);
      if (step.h_out.base) {
        store_lanes<kFull>(row_pointer<A>(step.h_out, row) + column, h, count);
      }
      if (step.mask.base) {
        // NOTE: rounded to storage, in which the weights' gradient multiplies it too.
        h = rounded<S, A>(h * load_lanes<kFull, V>(row_pointer<S>(step.mask, row) + column, count));
      }
      if (step.operand_out.base) {
        store_lanes<kFull>(row_pointer<E>(step.operand_out, row) + column, h, count);
      }
      if (step.storage_out.base) {
        store_lanes<kFull>(row_pointer<S>(step.storage_out, row) + column, h, count);
      }
    });
  }
}

template <typename S, typename E>
void state_gradient(const StateGradientStep& step) {
  using A = AccumulatorOf<E>;
  using V = Vec<A>;
  for (int64_t row = 0; row < step.rows; ++row) {
    const bool reset = is_reset(step.reset, row);
    for_each_vector<A>(step.begin, step.end, [&](auto full, int64_t column, int count) {
      constexpr bool kFull = decltype(full)::value;
      V dh{};
      if (step.product.base) {
        // NOTE: in whole vectors, as linear_step writes them.
        dh = load_unaligned<V>(row_pointer<A>(step.product, row) + column - step.begin);
        if (step.mask.base) {
          dh *= load_lanes<kFull, V>(row_pointer<S>(step.mask, row) + column, count);
        }
      }
      if (step.carry.base) {
        dh += load_lanes<kFull, V>(row_pointer<A>(step.carry, row) + column, count);
      }
      if (reset) {
        if (step.grad_reset.base) {
          A* to = row_pointer<A>(step.grad_reset, row) + column;
          store_lanes<kFull>(to, load_lanes<kFull, V>(to, count) + dh, count);
        }
        dh = V{};
      }
      for (const Rows& addend : step.addends) {
        if (addend.base) dh += load_lanes<kFull, V>(row_pointer<S>(addend, row) + column, count);
      }
      if (step.accumulator_out.base) {
        store_unaligned(row_pointer<A>(step.accumulator_out, row) + column - step.begin, dh);
      }
      if (step.storage_out.base) {
        store_lanes<kFull>(row_pointer<S>(step.storage_out, row) + column, dh, count);
      }
      if (step.operand_out.base) {
        const V operand = rounded<S, A>(dh);
        store_lanes<kFull>(row_pointer<E>(step.operand_out, row) + column, operand, count);
      }
    });
  }
}

template <typename S, typename E>
void option_backward(const OptionBackwardStep& step) {
  using A = AccumulatorOf<E>;
  using V = Vec<A>;
  const int64_t hidden = step.hidden_size;
  for (int64_t row = 0; row < step.rows; ++row) {
    const bool reset = is_reset(step.reset, row);
    A* dc_row = static_cast<A*>(step.dc) + row * hidden;
    for_each_vector<A>(step.begin, step.end, [&](auto full, int64_t unit, int count) {
      constexpr bool kFull = decltype(full)::value;
      const V dh = load_unaligned<V>(row_pointer<A>(step.dh, row) + unit - step.begin);
      const V dc = load_lanes<kFull, V>(dc_row + unit, count) +
                   load_or_zero<kFull, S, A>(step.grad_cell_states, row, unit, count);
      const S* gate_row = row_pointer<S>(step.gates, row) + unit;
      const Gates<V> gates = {load_lanes<kFull, V>(gate_row + kInputGate * hidden, count),
                              load_lanes<kFull, V>(gate_row + kForgetGate * hidden, count),
                              load_lanes<kFull, V>(gate_row + kCellGate * hidden, count),
                              load_lanes<kFull, V>(gate_row + kOutputGate * hidden, count)};
      const V c = load_lanes<kFull, V>(row_pointer<A>(step.cells, row) + unit, count);
      const V c_prev = reset ? load_or_zero<kFull, S, A>(step.options.reset_c, row, unit, count)
                             : load_lanes<kFull, V>(row_pointer<A>(step.c_prev, row) + unit, count);
      const OptionValues<V> values =
          load_options<kFull, S, A>(step.options, hidden, row, unit, count);
      OutputGradient<V> normed{};
      if (values.has_norm) {
        const A* from = row_pointer<A>(step.output_gradients, row) + unit;
        normed = {load_lanes<kFull, V>(from, count), load_lanes<kFull, V>(from + hidden, count)};
      }
      const OptionCellGradient<V> grad =
          option_cell_backward<VectorMath>(gates, c, c_prev, dh, dc, values, normed);

      // What goes to the step before, or to the state that a reset put in its place.
      if (reset && step.grad_reset_c.base) {
        add_lanes<kFull, A>(row_pointer<A>(step.grad_reset_c, row) + unit, grad.c_prev, count);
      }
      store_lanes<kFull>(dc_row + unit, reset ? V{} : grad.c_prev, count);
      if (step.carry.base) {
        store_lanes<kFull>(row_pointer<A>(step.carry, row) + unit, grad.h_kept, count);
      }

      if (step.cell_output.base && !values.has_norm) {
        store_lanes<kFull>(row_pointer<S>(step.cell_output, row) + unit, grad.cell_output, count);
      }
      const V all[kGates] = {grad.gates.i, grad.gates.f, grad.gates.g, grad.gates.o};
      if (values.has_norm) {
        A* to = row_pointer<A>(step.grad_activations, row) + unit;
#pragma GCC unroll 4
        for (int g = 0; g < kGates; ++g) store_lanes<kFull>(to + g * hidden, all[g], count);
      } else {
        S* grad_row = row_pointer<S>(step.grad_gates, row) + unit;
        E* operand_row = row_pointer<E>(step.operand_out, row) + unit;
#pragma GCC unroll 4
        for (int g = 0; g < kGates; ++g) {
          store_lanes<kFull>(grad_row + g * hidden, all[g], count);
          store_lanes<kFull>(operand_row + g * hidden, all[g], count);
        }
      }
      if (step.grad_peephole.base) {
        A* peephole = row_pointer<A>(step.grad_peephole, row) + unit;
        add_lanes<kFull, A>(peephole, grad.w_ci, count);
        add_lanes<kFull, A>(peephole + hidden, grad.w_cf, count);
        add_lanes<kFull, A>(peephole + 2 * hidden, grad.w_co, count);
      }
    });
  }
}
