# SPDX-License-Identifier: BSD-3-Clause
"""What an ONNX LSTM node says by its attributes, and what of it no FusedLSTM computes."""

from __future__ import annotations

from typing import Any, NamedTuple

_ACTIVATIONS = ["sigmoid", "tanh", "tanh"]


class Settings(NamedTuple):
    """What the nodes of one stack have in common."""

    hidden_size: int
    direction: str
    layout: int
    has_lengths: bool
    has_peepholes: bool
    couples_gates: bool


def settings_of(node: Any) -> Settings:
    """Raises for what no FusedLSTM computes, and for what ONNX does not allow."""
    if node.op_type != "LSTM" or node.domain not in ("", "ai.onnx"):
        raise ValueError(f"from_onnx takes LSTM nodes, got {node.domain}::{node.op_type}")
    attributes = _attributes(node)
    if len(node.input) > 8 or len(node.output) > 3:
        raise ValueError(
            f"LSTM node must have at most 8 inputs and 3 outputs, got {len(node.input)} and "
            f"{len(node.output)}"
        )
    if len(node.input) < 3 or not all(node.input[:3]):
        raise ValueError(f"LSTM node needs the inputs X, W and R, got {list(node.input)}")
    if len(set(filter(None, node.output))) != len(list(filter(None, node.output))):
        raise ValueError(f"LSTM node must have outputs of different names, got {node.output}")
    direction = attributes.get("direction", "forward")
    if direction not in ("forward", "reverse", "bidirectional"):
        raise ValueError(f"direction must be forward, reverse or bidirectional, got {direction!r}")
    layout = attributes.get("layout", 0)
    if layout not in (0, 1):
        raise ValueError(f"layout must be 0 or 1, got {layout}")
    hidden_size = attributes.get("hidden_size")
    if hidden_size is None or hidden_size < 1:
        raise ValueError(
            "LSTM node needs the attribute hidden_size, of at least 1, got "
            + ("none" if hidden_size is None else str(hidden_size))
        )
    activations = [name.lower() for name in attributes.get("activations", [])]
    expected = _ACTIVATIONS * (2 if direction == "bidirectional" else 1)
    if activations and len(activations) != len(expected):
        raise ValueError(f"activations must be 3 for each direction, got {activations}")
    if activations and activations != expected:
        raise NotImplementedError(f"activations must be Sigmoid, Tanh, Tanh, got {activations}")
    for name in ("activation_alpha", "activation_beta"):
        if attributes.get(name):
            raise NotImplementedError(f"Sigmoid and Tanh take no {name}, got {attributes[name]}")
    if "clip" in attributes:
        raise NotImplementedError(
            "ONNX's clip bounds the inputs of the activations, where FusedLSTM's cell_clip bounds "
            f"c: from_onnx takes no clip, got clip={attributes['clip']}"
        )
    coupled = attributes.get("input_forget", 0)
    if coupled not in (0, 1):
        raise ValueError(f"input_forget must be 0 or 1, got {coupled}")

    def has_input(place: int) -> bool:
        return len(node.input) > place and bool(node.input[place])

    return Settings(hidden_size, direction, layout, has_input(4), has_input(7), coupled == 1)


def _attributes(node: Any) -> dict[str, Any]:
    """The attributes of an LSTM node by name, each of the type that ONNX gives it; text as str."""
    from onnx import AttributeProto, helper

    types = {
        "activation_alpha": AttributeProto.FLOATS,
        "activation_beta": AttributeProto.FLOATS,
        "activations": AttributeProto.STRINGS,
        "clip": AttributeProto.FLOAT,
        "direction": AttributeProto.STRING,
        "hidden_size": AttributeProto.INT,
        "input_forget": AttributeProto.INT,
        "layout": AttributeProto.INT,
        "output_sequence": AttributeProto.INT,  # before opset 7: whether Y is wanted
    }
    found: dict[str, Any] = {}
    for attribute in node.attribute:
        name = attribute.name
        if name not in types or name in found:
            problem = "twice" if name in found else "which it has not"
            raise ValueError(f"LSTM node got the attribute {name!r} {problem}")
        if attribute.type != types[name] or attribute.ref_attr_name:
            wanted = AttributeProto.AttributeType.Name(types[name])
            raise ValueError(f"LSTM node's {name} must be a value of type {wanted}, got another")
        value = helper.get_attribute_value(attribute)
        try:
            if isinstance(value, bytes):
                value = value.decode()
            elif types[name] == AttributeProto.STRINGS:
                value = [text.decode() for text in value]
        except UnicodeDecodeError as error:
            raise ValueError(f"LSTM node's {name} must be text, got {value!r}") from error
        found[name] = value
    return found
