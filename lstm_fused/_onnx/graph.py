# SPDX-License-Identifier: BSD-3-Clause
"""The constants of an ONNX graph: what its initializers hold, and what nodes make of them alone.

Exporters leave large weights as they were and put nodes before the LSTM that slice, reorder and
join them. Those nodes are evaluated by onnx's own reference implementation, one by one, each after
a look at the sizes that it will give: a file of a few bytes must not fill the memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

# Names of the domain of ONNX's own operators.
_DOMAINS = ("", "ai.onnx")

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

# Operators that the reader evaluates: moves and arithmetic, in time of the order of the sizes.
_OPERATORS = """
    Cast CastLike Concat Constant ConstantOfShape Dropout Expand Flatten Gather Identity Pad Reshape
    Shape Size Slice Split Squeeze Tile Transpose Unsqueeze Where
    Abs Add DequantizeLinear Div Exp Gemm MatMul Max Min Mul Neg Pow Reciprocal Sqrt Sub Sum
    ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum ReduceSumSquare
"""

# Elements that nodes may make for each element of the initializers they read, and in any case. Our
# own export takes 4.
_ELEMENTS_PER_ELEMENT = 64
_FREE_ELEMENTS = 1 << 22

# The opset from which on onnx's reference implementation has an operator that is older and has
# meant the same since.
_EVALUATED_SINCE = {"DequantizeLinear": 19}


class Graph:
    """The constants of a model, or those of a plain collection of values.

    Args:
        source: a ModelProto; an iterable of TensorProtos; or a mapping from a name to a
            TensorProto, a NumPy array or a tensor.

    Raises:
        TypeError: anything else.
        ValueError: a name that stands for several values.
    """

    def __init__(self, source: Any) -> None:
        import onnx

        self._values: dict[Any, Any] = {}
        self._nodes: list[Any] = []
        self._maker: dict[Any, int] = {}
        self._inputs: set[Any] = set()
        self.known_sizes: dict[Any, list[int | None]] = {}
        self.has_nodes = isinstance(source, onnx.ModelProto)
        self._budget = _FREE_ELEMENTS
        if not self.has_nodes:
            self._add_values(source)
            return
        self._opset = _opset_of(source)
        for function in source.functions:
            if function.domain in _DOMAINS and function.name in (*_OPERATORS.split(), "LSTM"):
                raise NotImplementedError(
                    f"{function.name} must be ONNX's own, got a model that defines a function of "
                    "this name in ONNX's domain"
                )
        graph = source.graph
        self._add_values(graph.initializer)
        self._inputs = {entry.name for entry in graph.input}
        self._nodes = list(graph.node)
        for index, node in enumerate(self._nodes):
            for name in filter(None, node.output):
                if name in self._maker or name in self._values or name in self._inputs:
                    raise ValueError(f"the graph must give each name once, got {name!r} twice")
                self._maker[name] = index
        for entry in graph.value_info:
            sizes = entry.type.tensor_type.shape.dim
            self.known_sizes[entry.name] = [
                size.dim_value if size.HasField("dim_value") else None for size in sizes
            ]

    def _add_values(self, values: Any) -> None:
        import onnx

        if isinstance(values, Mapping):
            self._values = dict(values)
            return
        if isinstance(values, onnx.GraphProto):
            raise TypeError(
                "initializers must be a ModelProto, TensorProtos or a mapping, got a GraphProto; "
                "pass the model, whose opset_import says what its nodes mean"
            )
        if not isinstance(values, Iterable) or isinstance(values, str | bytes | Tensor):
            raise TypeError(
                "initializers must be a ModelProto, TensorProtos or a mapping, "
                f"got {type(values).__name__}"
            )
        for tensor in values:
            if not isinstance(tensor, onnx.TensorProto):
                raise TypeError(f"initializers must be TensorProtos, got {type(tensor).__name__}")
            if tensor.name in self._values:
                raise ValueError(f"initializers must have names of their own, got {tensor.name!r}")
            self._values[tensor.name] = tensor

    def constant(self, what: str, name: Any) -> Tensor:
        """The value of this name.

        Args:
            what: it serves as, for messages: "W".

        Raises:
            ValueError: what is not there, is no constant, or cannot be read.
            TypeError: a value that is no tensor of floats.
            NotImplementedError: nodes that are not evaluated.
        """
        if name not in self._values and not self.has_nodes:
            raise ValueError(
                f"{what} must be among the initializers, got no {name!r}; where nodes compute it, "
                "pass the model in place of its initializers"
            )
        value = self._values.get(name)
        return _to_tensor(what, value if isinstance(value, Tensor) else self.array(what, name))

    def array(self, what: str, name: Any, known: Mapping[Any, Any] | None = None) -> Any:
        """The value of this name as a NumPy array, given those of `known` beside the constants."""
        found: dict[Any, Any] = dict(known or {})
        self._budget += _ELEMENTS_PER_ELEMENT * sum(value.size for value in found.values())
        for node in self._nodes_before(what, name, found):
            try:
                results = self._run(node, found)
            except (MemoryError, NotImplementedError):
                raise
            except Exception as error:  # of onnx, whose classes say nothing to our caller
                raise ValueError(
                    f"{what} comes from the node {label_of(node)}, which cannot be "
                    f"evaluated: {type(error).__name__}: {error}"
                ) from error
            found.update(results)
        return found[name]

    def _nodes_before(self, what: str, name: Any, found: dict[Any, Any]) -> list[Any]:
        """The nodes that compute the value, in order; into `found` the initializers they read."""
        order: list[Any] = []
        opened: set[int] = set()
        closed: set[int] = set()
        stack: list[tuple[Any, bool]] = [(name, False)]
        while stack:
            current, is_ready = stack.pop()
            if current in found:
                continue
            if current in self._values:
                found[current] = array_of(what, self._values[current])
                self._budget += _ELEMENTS_PER_ELEMENT * found[current].size
                continue
            if current not in self._maker:
                raise ValueError(
                    f"{what} must be constant, got {name!r}, which "
                    + ("is " if current == name else f"comes from {current!r}, ")
                    + (
                        "an input of the graph"
                        if current in self._inputs
                        else "no value of the graph (bodies of If and Loop, functions and sparse "
                        "initializers are not looked into)"
                    )
                )
            index = self._maker[current]
            node = self._nodes[index]
            if is_ready and index not in closed:
                closed.add(index)
                order.append(node)
            elif index in opened and index not in closed:
                raise ValueError(f"{what} must be constant, got {name!r}, which comes from itself")
            elif index not in closed:
                if not _is_evaluated(node):
                    raise NotImplementedError(
                        f"{what} must be constant, got {name!r}, which comes from the node "
                        f"{label_of(node)}, which is not evaluated"
                    )
                opened.add(index)
                stack.append((current, True))
                stack += [(needed, False) for needed in node.input if needed]
        return order

    def _run(self, node: Any, found: Mapping[Any, Any]) -> dict[Any, Any]:
        import numpy as np
        from onnx import AttributeProto, NodeProto, helper
        from onnx.reference import ReferenceEvaluator

        if node.domain:  # the evaluator knows one name of ONNX's domain
            named, node = node, NodeProto()
            node.CopyFrom(named)
            node.domain = ""
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                held = array_of(attribute.name, attribute.t).size
                self._budget += _ELEMENTS_PER_ELEMENT * held
        given = {name: found[name] for name in node.input if name}
        training = node.input[2] if node.op_type == "Dropout" and len(node.input) > 2 else ""
        if training and given[training].any():
            raise NotImplementedError(
                f"Dropout must be that of inference, got {label_of(node)} with training_mode"
            )
        self._budget -= self._elements_of_results(node, given)
        if self._budget < 0:
            raise ValueError("it gives too many elements for what it reads")
        graph = helper.make_graph(
            [node],
            "constants",
            [helper.make_empty_tensor_value_info(name) for name in given],
            [helper.make_empty_tensor_value_info(name) for name in node.output if name],
        )
        opset = max(self._opset, _EVALUATED_SINCE.get(node.op_type, 0))
        results = ReferenceEvaluator(graph, opsets={"": opset}).run(None, given)
        names = [name for name in node.output if name]
        return {name: np.asarray(r) for name, r in zip(names, results, strict=True)}

    def _elements_of_results(self, node: Any, given: Mapping[Any, Any]) -> int:
        from onnx import defs, helper, numpy_helper, shape_inference

        types = {
            name: helper.make_tensor_type_proto(
                helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
            )
            for name, value in given.items()
        }
        # Sizes and axes are such values.
        values = {
            name: numpy_helper.from_array(value, name)
            for name, value in given.items()
            if value.dtype.kind == "i" and value.size <= 64
        }
        results = shape_inference.infer_node_outputs(
            defs.get_schema(node.op_type, self._opset, ""),
            node,
            types,
            values,
            opset_imports=[helper.make_opsetid("", self._opset)],
        )
        total = 0
        for name in filter(None, node.output):
            shape = results[name].tensor_type.shape if name in results else None
            if shape is None or not results[name].tensor_type.HasField("shape"):
                raise ValueError(f"the size of {name!r} is not known beforehand")
            if not all(size.HasField("dim_value") and size.dim_value >= 0 for size in shape.dim):
                raise ValueError(f"the size of {name!r} is not known beforehand")
            total += math.prod(size.dim_value for size in shape.dim)
        return total


def _opset_of(model: Any) -> int:
    versions = {entry.version for entry in model.opset_import if entry.domain in _DOMAINS}
    if len(versions) != 1 or min(versions) < 1:
        raise ValueError(
            "the model must say ONNX's opset in opset_import, one of at least 1, got "
            + (", ".join(map(str, sorted(versions))) or "none")
        )
    return int(versions.pop())


def _is_evaluated(node: Any) -> bool:
    # NOTE: before opset 7 `broadcast`, with `axis`, lays sizes upon each other in another way than
    # the reference implementation, which does not look at it.
    return (
        node.domain in _DOMAINS
        and node.op_type in _OPERATORS.split()
        and all(attribute.name != "broadcast" for attribute in node.attribute)
    )


def label_of(node: Any) -> str:
    """What a message calls a node: by its name, or by what it gives."""
    own = repr(node.name) if node.name else f"of {', '.join(map(str, node.output))}"
    return f"{own} ({node.op_type})"


def array_of(what: str, value: Any) -> Any:
    """A TensorProto's or tensor's values as a NumPy array, without those of other files."""
    import numpy as np
    from onnx import TensorProto, numpy_helper

    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    if not isinstance(value, TensorProto):
        raise TypeError(
            f"{what} must be a TensorProto, a NumPy array or a tensor, got {type(value).__name__}"
        )
    if value.data_location == TensorProto.EXTERNAL:
        raise ValueError(
            f"{what} has its values in another file, which is not read here: "
            "onnx.load(path) reads it, as does "
            "onnx.external_data_helper.load_external_data_for_model(model, folder)"
        )
    sizes = tuple(value.dims)
    if any(size < 0 for size in sizes) or math.prod(sizes) > 8 * value.ByteSize():
        raise ValueError(f"{what} cannot have shape {sizes} with {value.ByteSize()} bytes")
    fields = ("raw_data", "float_data", "double_data", "int32_data", "int64_data", "uint64_data")
    given = [field for field in fields if len(getattr(value, field)) > 0]
    if len(given) > 1:
        raise ValueError(f"{what} must hold its values once, got {' and '.join(given)}")
    try:
        return numpy_helper.to_array(value)
    except MemoryError:
        raise
    except Exception as error:  # of onnx and NumPy, whose classes say nothing to our caller
        raise ValueError(f"{what} cannot be read: {type(error).__name__}: {error}") from error


def _to_tensor(what: str, value: Any) -> Tensor:
    import numpy as np

    if isinstance(value, Tensor):
        if value.dtype in DTYPES and value.layout == torch.strided and not value.is_nested:
            return value
        kind = "a nested tensor" if value.is_nested else f"{value.dtype}, {value.layout}"
    else:
        kind = value.dtype.name
        array = np.ascontiguousarray(value.astype(value.dtype.newbyteorder("="), copy=False))
        array = array.reshape(value.shape)  # NOTE: ascontiguousarray makes a dimension of none
        if kind == "bfloat16":
            return torch.tensor(array.view(np.int16), device="cpu").view(torch.bfloat16)
        if kind in ("float32", "float64", "float16"):
            return torch.tensor(array, device="cpu")
    raise TypeError(f"{what} must be float32, float64, bfloat16 or float16, got {kind}")
