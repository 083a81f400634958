# SPDX-License-Identifier: BSD-3-Clause
"""The ops of a layer as ONNX's LSTM node, in the terms of the graph that torch.onnx is writing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lstm_fused._ops.layer_weights import split_directions

# ONNX has the gates i, o, f, c where torch has i, f, g, o (c is g), and peepholes of i, o, f where
# the op has those of i, f, o. Each list says for a part of ONNX's which of ours it is.
_GATES = (0, 3, 1, 2)
_PEEPHOLES = (0, 2, 1)
# f's place in ours, of gates and of peepholes.
_F = 1


def lstm_node(
    input: Any,
    h_0: Any,
    c_0: Any,
    weights: Sequence[Any],
    lengths: Any,
    batch_sizes: Any,
    reset_mask: Any,
    save_for_backward: bool,
    return_cell_states: bool,
    recompute: bool = False,
) -> tuple[Any, ...]:
    """The op lstm_forward."""
    _refuse(batch_sizes, reset_mask, return_cell_states)
    y, h_n, c_n = _write(input, h_0, c_0, weights, lengths)
    return (y, h_n, c_n, *_unused(c_n, 3))


def lstm_options_node(
    input: Any,
    h_0: Any,
    c_0: Any,
    weights: Sequence[Any],
    lengths: Any,
    batch_sizes: Any,
    reset_mask: Any,
    peephole: Any,
    h_mask: Any,
    keep_c: Any,
    keep_h: Any,
    reset_h: Any,
    reset_c: Any,
    gains: Any,
    cell_norm: Any,
    coupled_gates: bool,
    cell_clip: float,
    zoneout_c: float,
    zoneout_h: float,
    save_for_backward: bool,
    return_cell_states: bool,
    recompute: bool = False,
) -> tuple[Any, ...]:
    """The op lstm_options_forward."""
    _refuse(batch_sizes, reset_mask, return_cell_states)
    if cell_clip:
        raise NotImplementedError(
            "ONNX's clip bounds the inputs of the activations, where FusedLSTM's cell_clip bounds "
            f"c: ONNX's LSTM has none of c, got cell_clip={cell_clip}"
        )
    if gains is not None or cell_norm is not None:
        raise NotImplementedError("ONNX's LSTM normalises nothing, got layer_norm=True")
    if keep_c is not None or keep_h is not None:
        raise NotImplementedError("ONNX's LSTM has no zoneout, got masks of it")
    if zoneout_c or zoneout_h:
        raise NotImplementedError(
            f"ONNX's LSTM has no zoneout, got zoneout=({zoneout_c}, {zoneout_h})"
        )
    if h_mask is not None:
        raise NotImplementedError(
            "ONNX's LSTM has no recurrent_dropout, got its mask, from training mode"
        )
    y, h_n, c_n = _write(input, h_0, c_0, weights, lengths, peephole, coupled_gates)
    return (y, h_n, c_n, *_unused(c_n, 5))


def refuse_random(*_: Any, **__: Any) -> Any:
    """The op aten.random, ahead of the layer that it makes masks for; torch translates no such."""
    raise NotImplementedError(
        "ONNX draws no integers at random, got aten.random, as of zoneout in training mode: export "
        "the module after eval()"
    )


def refuse_quantized(*_: Any, **__: Any) -> Any:
    """The ops of packed weights."""
    raise NotImplementedError(
        "ONNX has no LSTM of packed weights: its quantized LSTM rounds activations to 8 bits, and "
        "would compute something else; export the module's dequantize()"
    )


def _refuse(batch_sizes: Any, reset_mask: Any, return_cell_states: bool) -> None:
    if reset_mask is not None:
        raise NotImplementedError("ONNX's LSTM has no resets in mid-sequence, got reset_mask")
    if return_cell_states:
        raise NotImplementedError(
            "ONNX's LSTM gives the last cell state only, got return_cell_states=True"
        )
    if batch_sizes is not None:
        raise NotImplementedError(
            "ONNX has no packed sequences, got a PackedSequence; pass padded input and lengths"
        )


def _unused(c_n: Any, count: int) -> list[Any]:
    """What an inference does not read: torch names the results, so that each is one of its own."""
    op = _opset()
    return [op.Identity(c_n) for _ in range(count)]


def _opset() -> Any:
    import onnxscript

    return onnxscript.opset18  # what it is called with is recorded; torch converts the version


def _write(
    input: Any,
    h_0: Any,
    c_0: Any,
    weights: Sequence[Any],
    lengths: Any,
    peephole: Any = None,
    coupled_gates: bool = False,
) -> tuple[Any, Any, Any]:
    """The nodes of one layer; y, h_n and c_n."""
    op = _opset()
    directions, hidden_size = int(h_0.shape[0]), int(c_0.shape[2])
    by_direction = split_directions(weights, directions)
    if by_direction[0].w_hr is not None:
        raise NotImplementedError("ONNX's LSTM has no projections, got proj_size > 0")

    def reordered(values: Any, order: Sequence[int], size: int, axis: int) -> Any:
        """What there is of all gates, `size` along this axis of each, in ONNX's order."""
        parts = [op.Slice(values, [k * size], [(k + 1) * size], [axis]) for k in range(len(order))]
        if coupled_gates:
            # NOTE: i = 1 - sigmoid(a_f) = sigmoid(-a_f). ONNX does not say which of i and f comes
            # from the other, and onnx's own evaluator couples nothing: with the weights of both,
            # every reading has these results.
            parts[0] = op.Neg(parts[_F])
        return op.Concat(*(parts[k] for k in order), axis=axis)

    def of_gates(weight: Any) -> Any:  # (4H, ...) -> (1, 4H, ...)
        return op.Unsqueeze(reordered(weight, _GATES, hidden_size, 0), [0])

    def stacked(values: list[Any]) -> Any:
        return values[0] if len(values) == 1 else op.Concat(*values, axis=0)

    w = stacked([of_gates(direction.w_ih) for direction in by_direction])
    r = stacked([of_gates(direction.w_hh) for direction in by_direction])
    b = p = None
    if by_direction[0].b_ih is not None:
        b = stacked([op.Concat(of_gates(d.b_ih), of_gates(d.b_hh), axis=1) for d in by_direction])
    if peephole is not None:  # (L, 3, H) -> (L, 3H)
        p = op.Reshape(reordered(peephole, _PEEPHOLES, 1, 1), [directions, -1])
    steps = None if lengths is None else op.Cast(lengths, to=6)  # int32
    y, h_n, c_n = op.LSTM(
        input,
        w,
        r,
        b,
        steps,
        h_0,
        c_0,
        p,
        hidden_size=hidden_size,
        direction="bidirectional" if directions == 2 else "forward",
        input_forget=1 if coupled_gates else 0,
    )
    if steps is not None:
        # A row of length 0 ends as it began; ONNX leaves that open, and ONNX Runtime gives zeros.
        is_empty = op.Unsqueeze(op.Equal(steps, op.CastLike(0, steps)), [0, 2])
        h_n, c_n = op.Where(is_empty, h_0, h_n), op.Where(is_empty, c_0, c_n)
    # (T, L, N, H) -> (T, N, L·H)
    if directions == 1:
        y = op.Squeeze(y, [1])
    else:
        y = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), [0, 0, directions * hidden_size])
    return y, h_n, c_n
