# SPDX-License-Identifier: BSD-3-Clause
"""To and from ONNX's standard LSTM node.

>>> torch.onnx.export(model, (x,), "model.onnx", dynamo=True,
...                   custom_translation_table=lstm_fused.onnx.translation_table())
>>> lstm = lstm_fused.from_onnx(node, graph.initializer)

The packages onnx (for `from_onnx`) and onnxscript (for the export) are imported when called for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lstm_fused.module import FusedLSTM, Hidden

# ONNX has the gates i, o, f, c where torch has i, f, g, o (c is g). Each list says for a gate of
# the target which of the source's it is.
_TO_ONNX = (0, 3, 1, 2)
_FROM_ONNX = (0, 2, 3, 1)
_ACTIVATIONS = ["sigmoid", "tanh", "tanh"]


# ---- To ONNX ----


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For torch.onnx.export(dynamo=True, custom_translation_table=...): FusedLSTM as LSTM nodes.

    One node for each layer, with both directions in it. Opset 17 or newer. Projections,
    reset_mask, return_cell_states and PackedSequences have no place in ONNX's LSTM: the export
    raises NotImplementedError, wrapped in torch's own ConversionError.
    """
    import onnxscript  # noqa: F401  (says early what is missing)

    return {torch.ops.lstm_fused.lstm_forward.default: _lstm_node}


def _lstm_node(
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
    """The op lstm_forward, in the terms of the graph that is being written."""
    import onnxscript

    op: Any = onnxscript.opset18  # what it is called with is recorded; torch converts the version

    directions = int(h_0.shape[0])
    each = len(weights) // directions
    if each in (3, 5):
        raise NotImplementedError("ONNX's LSTM has no projections, got proj_size > 0")
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
    hidden_size = int(c_0.shape[2])

    def reordered(weight: Any) -> Any:  # (4H, ...) -> (1, 4H, ...), gates in ONNX's order
        def gate(k: int) -> Any:
            return op.Slice(weight, [k * hidden_size], [(k + 1) * hidden_size], [0])

        return op.Unsqueeze(op.Concat(*(gate(k) for k in _TO_ONNX), axis=0), [0])

    def stacked(values: list[Any]) -> Any:
        return values[0] if len(values) == 1 else op.Concat(*values, axis=0)

    by_direction = [weights[d * each : (d + 1) * each] for d in range(directions)]
    w = stacked([reordered(own[0]) for own in by_direction])
    r = stacked([reordered(own[1]) for own in by_direction])
    b = None
    if each == 4:
        b = stacked(
            [op.Concat(reordered(own[2]), reordered(own[3]), axis=1) for own in by_direction]
        )
    steps = None if lengths is None else op.Cast(lengths, to=6)  # int32
    y, h_n, c_n = op.LSTM(
        input,
        w,
        r,
        b,
        steps,
        h_0,
        c_0,
        hidden_size=hidden_size,
        direction="bidirectional" if directions == 2 else "forward",
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
    # What the inference does not read: torch names the results, so that each is one of its own.
    unused = [op.Identity(c_n) for _ in range(3)]
    return (y, h_n, c_n, *unused)


# ---- From ONNX ----


class ReversedLSTM(nn.Module):
    """An LSTM that runs from a row's end to its start, as ONNX's direction="reverse".

    Args:
        lstm: one layer and direction.
    """

    def __init__(self, lstm: FusedLSTM) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(
        self, input: Tensor, hx: Hidden | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, Hidden]:
        """As :class:`FusedLSTM`, for batched padded input."""
        time_dim = 1 if self.lstm.batch_first else 0
        y, hidden = self.lstm(_flip(input, lengths, time_dim), hx, lengths=lengths)
        return _flip(y, lengths, time_dim), hidden


def _flip(input: Tensor, lengths: Tensor | None, time_dim: int) -> Tensor:
    """Each row's own steps in reverse order; what is past its end stays."""
    if lengths is None:
        return input.flip(time_dim)
    t = torch.arange(input.shape[time_dim], device=input.device).unsqueeze(1 - time_dim)
    ends = lengths.to(input.device).unsqueeze(time_dim)
    index = torch.where(t < ends, ends - 1 - t, t)
    return input.gather(time_dim, index.unsqueeze(-1).expand_as(input))


def from_onnx(
    nodes: Any, initializers: Mapping[str, Any] | Iterable[Any]
) -> FusedLSTM | ReversedLSTM:
    """A module that computes what ONNX's LSTM node computes, or a chain of them.

    Args:
        nodes: a NodeProto, or a sequence of them as layers, the first one first.
        initializers: the values of W, R and B: TensorProtos (as `graph.initializer`), or a mapping
            from a name to a TensorProto, NumPy array or tensor.

    The inputs X, sequence_lens, initial_h and initial_c go to the module's call: ``module(x, hx,
    lengths=lengths)``. With layout=1 the module is batch_first; h and c are (L, N, H) all the same.

    Returns:
        A FusedLSTM; for direction="reverse" a :class:`ReversedLSTM` around one.

    Raises:
        NotImplementedError: peepholes, clip, input_forget, and activations other than the defaults.
        ValueError: weights that are missing or do not fit.
    """
    layers = list(nodes) if isinstance(nodes, Sequence) else [nodes]
    if not layers:
        raise ValueError("from_onnx needs at least one node, got none")
    values = _values_by_name(initializers)
    settings = [_settings(node) for node in layers]
    hidden_size, direction, batch_first = settings[0]
    if any(each != settings[0] for each in settings):
        raise ValueError(
            "nodes of one stack must agree in hidden_size, direction and layout, got "
            + ", ".join(str(each) for each in settings)
        )
    if direction == "reverse" and len(layers) > 1:
        raise NotImplementedError("from_onnx takes one node with direction='reverse', got several")
    directions = 2 if direction == "bidirectional" else 1
    tensors = [_weights(node, values, hidden_size, directions) for node in layers]
    has_bias = any(b is not None for _, _, b in tensors)
    first = tensors[0][0]
    module = FusedLSTM(
        first.shape[2],
        hidden_size,
        len(layers),
        bias=has_bias,
        batch_first=batch_first,
        bidirectional=directions == 2,
        device=first.device,
        dtype=first.dtype,
    )
    unit = torch.arange(hidden_size, device=first.device)
    gates = torch.cat([unit + k * hidden_size for k in _FROM_ONNX])
    state: dict[str, Tensor] = {}
    for layer, (w, r, b) in enumerate(tensors):
        for d in range(directions):
            suffix = f"l{layer}" + ("_reverse" if d == 1 else "")
            state[f"weight_ih_{suffix}"] = w[d, gates]
            state[f"weight_hh_{suffix}"] = r[d, gates]
            if has_bias:
                both = w.new_zeros(2, len(gates)) if b is None else b[d].view(2, -1)
                state[f"bias_ih_{suffix}"] = both[0, gates]
                state[f"bias_hh_{suffix}"] = both[1, gates]
    module.load_state_dict(state)
    return ReversedLSTM(module) if direction == "reverse" else module


def _values_by_name(initializers: Mapping[str, Any] | Iterable[Any]) -> dict[str, Any]:
    if isinstance(initializers, Mapping):
        return dict(initializers)
    tensors: Iterable[Any] = initializers
    return {tensor.name: tensor for tensor in tensors}


def _to_tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if hasattr(value, "SerializeToString"):  # a TensorProto
        from onnx import numpy_helper

        value = numpy_helper.to_array(value)
    return torch.tensor(value, device="cpu")


def _settings(node: Any) -> tuple[int, str, bool]:
    """hidden_size, direction, batch_first; raises for what no FusedLSTM computes."""
    from onnx import helper

    if node.op_type != "LSTM" or node.domain not in ("", "ai.onnx"):
        raise ValueError(f"from_onnx takes LSTM nodes, got {node.domain}::{node.op_type}")
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    direction = attributes.get("direction", b"forward").decode()
    if "hidden_size" not in attributes:
        raise ValueError("LSTM node needs the attribute hidden_size, got none")
    names = [name.decode().lower() for name in attributes.get("activations", [])]
    if names != _ACTIVATIONS * (len(names) // 3):
        raise NotImplementedError(f"activations must be Sigmoid, Tanh, Tanh, got {names}")
    for name in ("activation_alpha", "activation_beta"):
        if name in attributes:
            raise NotImplementedError(f"Sigmoid and Tanh take no {name}, got {attributes[name]}")
    if "clip" in attributes:
        raise NotImplementedError(f"FusedLSTM does not clip, got clip={attributes['clip']}")
    if attributes.get("input_forget", 0):
        raise NotImplementedError("FusedLSTM does not couple its gates, got input_forget=1")
    if len(node.input) > 7 and node.input[7]:
        raise NotImplementedError("FusedLSTM has no peepholes, got the input P")
    return attributes["hidden_size"], direction, attributes.get("layout", 0) == 1


def _weights(
    node: Any, values: Mapping[str, Any], hidden_size: int, directions: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """W (L, 4H, D), R (L, 4H, H), B (L, 8H) or None."""

    def read(place: int, name: str) -> Tensor | None:
        given = node.input[place] if len(node.input) > place else ""
        if not given:
            return None
        if given not in values:
            raise ValueError(f"{name} must be among the initializers, got no {given!r}")
        return _to_tensor(values[given])

    w, r, b = read(1, "W"), read(2, "R"), read(3, "B")
    if w is None or r is None:
        raise ValueError("LSTM node needs the inputs W and R, got none")
    rows = 4 * hidden_size
    expected = [("R", r, (directions, rows, hidden_size)), ("B", b, (directions, 2 * rows))]
    expected.append(("W", w, (directions, rows, w.shape[-1])))
    for name, tensor, sizes in expected:
        if tensor is not None and tuple(tensor.shape) != sizes:
            raise ValueError(f"{name} must have shape {sizes}, got {tuple(tensor.shape)}")
    return w, r, b
