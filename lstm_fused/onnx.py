# SPDX-License-Identifier: BSD-3-Clause
"""To and from ONNX's standard LSTM node.

>>> import onnx, torch, lstm_fused
>>> lstm, x = lstm_fused.FusedLSTM(10, 20).eval(), torch.randn(5, 3, 10)
>>> program = torch.onnx.export(lstm, (x,), "model.onnx", dynamo=True, verbose=False,
...                             custom_translation_table=lstm_fused.onnx.translation_table())
>>> lstm_fused.from_onnx(onnx.load("model.onnx"))
FusedLSTM(10, 20)

The packages onnx (for `from_onnx`) and onnxscript (for the export) are imported when called for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lstm_fused._onnx.export import lstm_node, lstm_options_node, refuse_quantized, refuse_random
from lstm_fused._onnx.graph import Graph, label_of
from lstm_fused._onnx.node import Settings, settings_of
from lstm_fused._ops.layer_weights import GATES
from lstm_fused._torch.lstm_checks import Hidden
from lstm_fused.module import FusedLSTM

# ONNX has the gates i, o, f, c where torch has i, f, g, o (c is g), and peepholes of i, o, f where
# a FusedLSTM has those of i, f, o. Each list says for a part of ours which of ONNX's it is.
_GATES = (0, 2, 3, 1)
_PEEPHOLES = (0, 2, 1)


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For torch.onnx.export(dynamo=True, custom_translation_table=...): FusedLSTM as LSTM nodes.

    One node for each layer, with both directions in it. Opset 17 or newer. `peephole` is the node's
    input P, and `coupled_gates` its attribute input_forget, with weights that give the same results
    where a runtime does not look at the attribute. Projections, reset_mask, return_cell_states,
    PackedSequences, quantized modules, other options of the cell and masks of the training mode
    have no place in ONNX's LSTM: the export raises NotImplementedError, wrapped in torch's own
    ConversionError.
    """
    import onnxscript  # noqa: F401  (says early what is missing)

    return {
        torch.ops.lstm_fused.lstm_forward.default: lstm_node,
        torch.ops.lstm_fused.lstm_options_forward.default: lstm_options_node,
        torch.ops.lstm_fused.lstm_quantized.default: refuse_quantized,
        torch.ops.lstm_fused.lstm_quantized_cell.default: refuse_quantized,
        torch.ops.aten.random.default: refuse_random,
    }


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
        """As :class:`lstm_fused.FusedLSTM`, for batched padded input."""
        time_dim = 1 if self.lstm.batch_first else 0
        y, hidden = self.lstm(_flip(input, lengths, time_dim), hx, lengths=lengths)
        return _flip(y, lengths, time_dim), hidden


def _flip(input: Tensor, lengths: Tensor | None, time_dim: int) -> Tensor:
    """Reverses the steps of each row within its length; padding stays."""
    if lengths is None:
        return input.flip(time_dim)
    t = torch.arange(input.shape[time_dim], device=input.device).unsqueeze(1 - time_dim)
    ends = lengths.to(input.device).unsqueeze(time_dim)
    index = torch.where(t < ends, ends - 1 - t, t)
    return input.gather(time_dim, index.unsqueeze(-1).expand_as(input))


class _Weights(NamedTuple):
    w: Tensor  # (L, 4H, D)
    r: Tensor  # (L, 4H, H)
    b: Tensor | None  # (L, 8H)
    p: Tensor | None  # (L, 3H)


def from_onnx(nodes: Any, initializers: Any = None) -> FusedLSTM | ReversedLSTM:
    """A module that computes what ONNX's LSTM node computes, or a chain of them.

    ::

        from_onnx(model)                    # its LSTM nodes, which must be one chain
        from_onnx(node, model)              # one of its nodes, or a sequence of them as layers
        from_onnx(node, graph.initializer)  # where W, R, B and P are initializers themselves

    Args:
        nodes: a ModelProto; a NodeProto; or NodeProtos as layers, the first one first.
        initializers: where W, R, B and P are found. A ModelProto: among its initializers, or
            computed from them by its nodes, as exporters leave large weights; layers are then
            checked to be connected as a stack is. TensorProtos (as `graph.initializer`), or a
            mapping from a name to a TensorProto, NumPy array or tensor: there by name.

    The inputs X, sequence_lens, initial_h and initial_c go to the module's call: ``module(x, hx,
    lengths=lengths)``. With layout=1 the module is batch_first; h and c are (L, N, H) all the same.
    P makes it one with ``peephole=True``. With input_forget=1 it has ``coupled_gates=True``: ONNX
    Runtime computes f = 1 - i, so that our f, from which i = 1 - f comes, is given the weights of
    the node's i with the other sign.
    What a model computes before and after its LSTM nodes is not looked at. The bodies of If and
    Loop are not looked into, nor functions (onnx.inliner inlines these), nor files of external
    data (onnx.load reads them).

    Returns:
        A FusedLSTM on the device of W (the CPU, if it is no tensor of another one) and in its
        dtype; for direction="reverse" a :class:`.ReversedLSTM` around one.

    Raises:
        NotImplementedError: clip, activations other than the defaults, and weights that come from
            nodes which are not evaluated.
        TypeError: arguments of other types; weights that are not float32, float64, bfloat16 or
            float16, or not all of one dtype.
        ValueError: all else that is wrong with nodes and weights: attributes, shapes, weights that
            are missing, unreadable, or no constants.
    """
    import onnx

    if isinstance(nodes, onnx.ModelProto):
        if initializers is not None:
            raise TypeError("from_onnx takes a ModelProto alone, got initializers too")
        layers, initializers = _lstm_nodes(nodes), nodes
    elif isinstance(nodes, onnx.NodeProto):
        layers = [nodes]
    elif isinstance(nodes, Iterable) and not isinstance(nodes, str | bytes):
        layers = list(nodes)
    else:
        raise TypeError(f"from_onnx takes a ModelProto or NodeProtos, got {type(nodes).__name__}")
    for node in layers:
        if not isinstance(node, onnx.NodeProto):
            raise TypeError(f"from_onnx takes NodeProtos as layers, got {type(node).__name__}")
    if not layers:
        raise ValueError("from_onnx needs at least one node, got none")
    settings = [settings_of(node) for node in layers]
    if any(each != settings[0] for each in settings):
        raise ValueError(
            "nodes of one stack must agree in hidden_size, direction, layout, sequence_lens, P and "
            "input_forget, got " + ", ".join(str(each) for each in settings)
        )
    own = settings[0]
    if own.direction == "reverse" and len(layers) > 1:
        raise NotImplementedError("from_onnx takes one node with direction='reverse', got several")
    directions = 2 if own.direction == "bidirectional" else 1
    graph = Graph(initializers)
    weights = [_read_weights(node, graph, own.hidden_size, directions) for node in layers]
    _check_stack(layers, graph, own, directions, weights)
    module = _make_module(own, directions, weights)
    return ReversedLSTM(module) if own.direction == "reverse" else module


def _make_module(own: Settings, directions: int, weights: Sequence[_Weights]) -> FusedLSTM:
    first = weights[0].w
    has_bias = any(each.b is not None for each in weights)
    module = FusedLSTM(
        first.shape[2],
        own.hidden_size,
        len(weights),
        bias=has_bias,
        batch_first=own.layout == 1,
        bidirectional=directions == 2,
        device=first.device,
        dtype=first.dtype,
        peephole=own.has_peepholes,
        coupled_gates=own.couples_gates,
    )
    state: dict[str, Tensor] = {}
    for layer, (w, r, b, p) in enumerate(weights):
        for d in range(directions):
            suffix = f"l{layer}" + ("_reverse" if d == 1 else "")
            state[f"weight_ih_{suffix}"] = _reordered(w[d], _GATES, own)
            state[f"weight_hh_{suffix}"] = _reordered(r[d], _GATES, own)
            if has_bias:
                both = w.new_zeros(2, w.shape[1]) if b is None else b[d].view(2, -1)
                state[f"bias_ih_{suffix}"] = _reordered(both[0], _GATES, own)
                state[f"bias_hh_{suffix}"] = _reordered(both[1], _GATES, own)
            if p is not None:
                parts = _reordered(p[d], _PEEPHOLES, own)
                state[f"peephole_{suffix}"] = parts.view(len(_PEEPHOLES), -1)
    module.load_state_dict(state)
    return module


def _reordered(values: Tensor, order: Sequence[int], own: Settings) -> Tensor:
    """What ONNX has of all gates, i first, in our order, in which f is second."""
    parts = list(values.chunk(len(order)))
    if own.couples_gates:
        # NOTE: ONNX's f = 1 - sigmoid(a_i) = sigmoid(-a_i).
        parts[order[1]] = -parts[0]
    return torch.cat([parts[k] for k in order])


def _lstm_nodes(model: Any) -> list[Any]:
    found = [node for node in model.graph.node if node.op_type == "LSTM"]
    if not found:
        raise ValueError(
            "the graph must hold LSTM nodes, got none; from_onnx does not look into the bodies of "
            "If and Loop, nor into functions, which onnx.inliner inlines"
        )
    return found


def _read_weights(node: Any, graph: Graph, hidden_size: int, directions: int) -> _Weights:
    def optional(name: str, place: int) -> Tensor | None:
        given = node.input[place] if len(node.input) > place else ""
        return graph.constant(name, given) if given else None

    w, r = graph.constant("W", node.input[1]), graph.constant("R", node.input[2])
    b, p = optional("B", 3), optional("P", 7)
    rows = GATES * hidden_size
    input_size = w.shape[2] if w.dim() == 3 and w.shape[2] > 0 else "D"
    expected: list[tuple[str, Tensor | None, tuple[Any, ...]]] = [
        ("R", r, (directions, rows, hidden_size)),
        ("B", b, (directions, 2 * rows)),
        ("P", p, (directions, len(_PEEPHOLES) * hidden_size)),
        ("W", w, (directions, rows, input_size)),
    ]
    for name, tensor, sizes in expected:
        if tensor is None:
            continue
        if tuple(tensor.shape) != sizes:
            raise ValueError(f"{name} must have shape {sizes}, got {tuple(tensor.shape)}")
        if tensor.dtype != w.dtype:
            raise TypeError(f"{name} must have W's dtype, {w.dtype}, got {tensor.dtype}")
        if tensor.device != w.device:
            raise ValueError(f"{name} must be on W's device, {w.device}, got {tensor.device}")
    return _Weights(w, r, b, p)


def _check_stack(
    nodes: Sequence[Any],
    graph: Graph,
    own: Settings,
    directions: int,
    weights: Sequence[_Weights],
) -> None:
    """Each layer reads the outputs of the one below: all of them, and nothing else. Shown on values
    drawn at random, where the graph is known."""
    import numpy as np

    first, features = weights[0].w, directions * own.hidden_size
    for below, node, (w, *_) in zip(nodes, nodes[1:], weights[1:], strict=False):
        if w.shape[2] != features:
            raise ValueError(f"W of an upper layer must have {features} columns, got {w.shape[2]}")
        if w.dtype != first.dtype:
            raise TypeError(f"W must have the first layer's dtype, {first.dtype}, got {w.dtype}")
        if w.device != first.device:
            raise ValueError(f"W must be on the first layer's device, got {w.device}")
        if not graph.has_nodes:
            continue
        y, x = below.output[0] if below.output else "", node.input[0]
        # (T, L, N, H), or (N, T, L, H): as exported, if for sizes of its own
        order = (0, 2, 1, 3) if own.layout == 0 else (0, 1, 2, 3)
        sizes = [5, 3]
        known = graph.known_sizes.get(y, [])
        if len(known) == 4:
            free = (known[order[0]], known[order[1]])
            sizes = [max(size or 0, 0) or other for size, other in zip(free, sizes, strict=True)]
        if sizes[0] * sizes[1] * features > 1 << 26:
            raise NotImplementedError(
                f"layers are compared on sizes of the export, got {sizes}, which is too large"
            )
        values = np.random.default_rng(0).standard_normal((*sizes, directions, own.hidden_size))
        values = values.astype(np.float16 if w.dtype.itemsize == 2 else np.float32)
        problem = f"X of the node {label_of(node)} must be Y of {label_of(below)}"
        if not y:
            raise ValueError(f"{problem}, got one without Y")
        try:
            found = graph.array("X", x, {y: values.transpose(np.argsort(order))})
        except (ValueError, NotImplementedError) as error:
            raise ValueError(f"{problem}: pass the nodes of one stack; {error}") from error
        if not np.array_equal(found, values.reshape(*sizes, features)):
            raise ValueError(f"{problem} with its directions joined, got something else")
