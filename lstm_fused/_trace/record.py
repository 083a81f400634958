# SPDX-License-Identifier: BSD-3-Clause
"""`lstm_fused.trace`: runs a model and records every LSTM in it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lstm_fused._trace.layer import Passage, Results, States, open_layer, record_layer
from lstm_fused._trace.result import GateTrace, Trace
from lstm_fused.autograd.arguments import LayerArguments
from lstm_fused.module import FusedLSTM
from lstm_fused.reference_options import LayerOptions

_SUFFIXES = ("", "_reverse")  # of nn.LSTM's parameters


def trace(
    model: nn.Module,
    *inputs: Any,
    differentiable: bool = False,
    through: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    **keywords: Any,
) -> Trace:
    """Runs a model, and records the gates, cell states and outputs of every FusedLSTM in it.

    The values are those that the kernels save in training. ::

        trace = lstm_fused.trace(lstm, x, lengths=lengths)
        trace["l0"].f  # the forget gate of layer 0 at every step, (T, N, H)
        trace["l1_reverse"].c  # the cell states of layer 1, the direction that runs backward
        lstm_fused.trace(model, *inputs)["encoder.lstm.l0"].h

    Names are those of nn.LSTM's parameters, behind the module's: "l0", "l0_reverse", "l1". Where a
    model calls an LSTM more than once, its later calls are "lstm:2.l0", "lstm:3.l0".

    Args:
        model: a FusedLSTM, or a module that holds some, as `convert` makes them. It runs as it is:
            call ``model.eval()`` first, or dropout acts. Steps of a FusedLSTMCell are not recorded.
        inputs, keywords: the arguments of the model's forward: of a FusedLSTM input, hx, lengths,
            reset_mask, reset_state, return_cell_states.
        differentiable: False: all runs without a graph, as under ``torch.no_grad()``. True: every
            tensor of the trace is a node of the graph that leads from the model's inputs and
            parameters to its output. ``torch.autograd.grad(score, trace["l0"].f)`` is then what
            a gate does for a score, the layer's other gates held as they are, and
            ``torch.autograd.grad(trace["l0"].f[t, n, unit], x)`` is what the gate came from; both
            of any order. The cell states are summed up step by step in torch operations then, which
            takes some ten microseconds a step.
        through: with `differentiable`, modules or functions by the names of tensors, as
            ``{"l0.f": nn.Identity()}``. The tensor goes through on its way, in the layout that the
            trace has it in, and what comes out takes its place; its shape must be the same. So
            Captum's layer attributions, which hook a module, reach a gate: with a batch-first LSTM,
            whose tensors have Captum's layout.

    Returns:
        A :class:`Trace`: a mapping from names to :class:`.GateTrace`, with i, f, g, o, c and h; and
        the model's `output`. Tensors are (T, N, H), h (T, N, P); (N, T, H) with ``batch_first``;
        (T, H) of unbatched input; of a PackedSequence padded, in the rows' order before packing.
        They are zero past a row's length, and float64 of a float64 module, else float32.

    Raises:
        TypeError: `model` is no module, or `through` holds what cannot be called.
        ValueError: there is no FusedLSTM in it; one has backend="cudnn", which saves no gates that
            could be read; none was called; `through` without `differentiable`, with a name that
            the model has not, or with a module that changes a shape.

    Whatever the model raises is raised too. While it runs, the modules' `backend` is not "auto": do
    not call them from other threads.

    Example:
        >>> lstm = lstm_fused.FusedLSTM(8, 32, num_layers=2)
        >>> trace = lstm_fused.trace(lstm, torch.randn(5, 3, 8))
        >>> list(trace)
        ['l0', 'l1']
        >>> trace["l1"].f.shape
        torch.Size([5, 3, 32])
    """
    if isinstance(model, nn.Module):
        model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    else:
        raise TypeError(f"trace takes a module, got {type(model).__name__}")
    modules = _find_modules(model)
    passages = _check_through(through, differentiable, modules)
    recorder = _Recorder(differentiable, passages)
    with (
        torch.compiler.set_stance("force_eager"),
        torch.set_grad_enabled(differentiable and torch.is_grad_enabled()),
        recorder.attached_to(modules),
    ):
        output = model(*inputs, **keywords)
    if not recorder.traces:
        raise ValueError(
            f"trace records FusedLSTM modules that the model calls, got a call of none of "
            f"{', '.join(repr(name) for name in modules)}"
        )
    return Trace(recorder.traces, output)


def _find_modules(model: nn.Module) -> dict[str, FusedLSTM]:
    modules = {
        name.replace("_orig_mod.", "").removesuffix("._orig_mod").removesuffix("_orig_mod"): module
        for name, module in model.named_modules()
        if isinstance(module, FusedLSTM)
    }
    if not modules:
        plain = [name or "itself" for name, m in model.named_modules() if isinstance(m, nn.LSTM)]
        found = f"nn.LSTM ({', '.join(plain)}): call lstm_fused.convert(model) first"
        raise ValueError(
            f"trace needs a FusedLSTM in the model, got {type(model).__name__} with "
            + (found if plain else "none")
        )
    for name, module in modules.items():
        if module.backend != "auto":
            raise ValueError(
                f'trace needs backend="auto", got backend={module.backend!r}'
                + (f" of {name!r}" if name else "")
            )
    return modules


def _check_through(
    through: Mapping[str, Any] | None, differentiable: bool, modules: Mapping[str, FusedLSTM]
) -> dict[str, Callable[[Tensor], Tensor]]:
    if through is None:
        return {}
    if not differentiable:
        raise ValueError("through needs differentiable=True, got differentiable=False")
    if not isinstance(through, Mapping):
        raise TypeError(f"through must map names to modules, got {type(through).__name__}")
    known = [
        f"{_tensor_name(module_name, 1, layer, d)}.{field}"
        for module_name, module in modules.items()
        for layer in range(module.num_layers)
        for d in range(2 if module.bidirectional else 1)
        for field in States._fields
    ]
    for name, passage in through.items():
        # A later call of a module has the name of its first, with a number.
        if not isinstance(name, str) or _without_call(name) not in known:
            some = ", ".join(known[:6]) + (", …" if len(known) > 6 else "")
            raise ValueError(
                f"through must have names of the trace's tensors ({some}), got {name!r}"
            )
        if not callable(passage):
            raise TypeError(
                f"through[{name!r}] must be a module or a function, got {type(passage).__name__}"
            )
    return dict(through)


def _tensor_name(module_name: str, call: int, layer: int, direction: int) -> str:
    own = f"l{layer}{_SUFFIXES[direction]}"
    if call > 1:
        module_name = f"{module_name}:{call}"
    return f"{module_name}.{own}" if module_name else own


def _without_call(name: str) -> str:
    before, colon, after = name.rpartition(":")
    if not colon:
        return name
    return before + after.lstrip("0123456789") if before else after.lstrip("0123456789.")


class _Layout(NamedTuple):
    """How the caller of a module holds its sequences."""

    batch_first: bool = False
    unbatched: bool = False
    sorted_indices: Tensor | None = None  # of a PackedSequence
    unsorted_indices: Tensor | None = None

    @classmethod
    def of(cls, module: FusedLSTM, input: Any) -> _Layout:
        if isinstance(input, PackedSequence):
            return cls(module.batch_first, False, input.sorted_indices, input.unsorted_indices)
        return cls(module.batch_first, isinstance(input, Tensor) and input.dim() == 2)

    def give(self, values: Tensor) -> Tensor:
        """From (T, N, …) to the caller's."""
        if self.unsorted_indices is not None:
            values = values.index_select(1, self.unsorted_indices)
        if self.unbatched:
            return values.squeeze(1)
        return values.transpose(0, 1) if self.batch_first else values

    def take(self, values: Tensor) -> Tensor:
        """From the caller's to (T, N, …)."""
        if self.unbatched:
            return values.unsqueeze(1)
        values = values.transpose(0, 1) if self.batch_first else values
        return (
            values if self.sorted_indices is None else values.index_select(1, self.sorted_indices)
        )


class _Recorder:
    """Runs the layers of modules in the place of `lstm_layer`, and keeps what it sees."""

    def __init__(
        self, differentiable: bool, through: Mapping[str, Callable[[Tensor], Tensor]]
    ) -> None:
        self.traces: dict[str, GateTrace] = {}
        self._differentiable = differentiable
        self._through = through

    @contextlib.contextmanager
    def attached_to(self, modules: Mapping[str, FusedLSTM]) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for name, module in modules.items():
                call = _ModuleCalls(name, module, self)
                hook = module.register_forward_pre_hook(call.begin, with_kwargs=True)
                stack.callback(hook.remove)
                for attribute, value in (("backend", "trace"), ("_run_layer", call.run_layer)):
                    stack.enter_context(_replaced(module, attribute, value))
            yield

    def run(
        self,
        arguments: LayerArguments,
        weights: Sequence[Tensor],
        options: LayerOptions | None,
        names: list[str],
        layout: _Layout,
    ) -> Results:
        given: list[dict[str, Tensor]] = [{} for _ in names]
        if self._differentiable:
            passage = self._passage(names, layout, given)
            recorded = open_layer(arguments, weights, options, passage)
        else:
            recorded = record_layer(arguments, weights, options)
            for own, states in zip(given, recorded.states, strict=True):
                given_states = map(layout.give, states)
                own.update(zip(States._fields, given_states, strict=True))
        valid = None if recorded.valid is None else layout.give(recorded.valid)
        time_dim = 1 if layout.batch_first and not layout.unbatched else 0
        for name, own in zip(names, given, strict=True):
            self.traces[name] = GateTrace(name, **own, valid=valid, time_dim=time_dim)
        return recorded.results

    def _passage(
        self, names: list[str], layout: _Layout, given: list[dict[str, Tensor]]
    ) -> Passage:
        """Keeps what it hands to the caller, and goes on with that: a view made for the caller
        alone would lead nowhere."""

        def passage(direction: int, field: str, values: Tensor) -> Tensor:
            name, handed = f"{names[direction]}.{field}", layout.give(values)
            if name in self._through:
                taken = self._through[name](handed)
                if not isinstance(taken, Tensor) or taken.shape != handed.shape:
                    got = tuple(taken.shape) if isinstance(taken, Tensor) else type(taken).__name__
                    raise ValueError(
                        f"through[{name!r}] must give a tensor of shape {tuple(handed.shape)}, "
                        f"got {got}"
                    )
                handed = taken
            given[direction][field] = handed
            return layout.take(handed)

        return passage


class _ModuleCalls:
    """The calls of one module while a model runs."""

    def __init__(self, name: str, module: FusedLSTM, recorder: _Recorder) -> None:
        self._name, self._module, self._recorder = name, module, recorder
        self._layers_run = 0
        self._layout = _Layout(module.batch_first)

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Sees in which layout a call has its input."""
        self._layout = _Layout.of(self._module, args[0] if args else kwargs.get("input"))

    def run_layer(
        self,
        arguments: LayerArguments,
        weights: Sequence[Tensor],
        options: LayerOptions | None = None,
    ) -> Results:
        call, layer = divmod(self._layers_run, self._module.num_layers)
        self._layers_run += 1
        directions = 2 if self._module.bidirectional else 1
        names = [_tensor_name(self._name, call + 1, layer, d) for d in range(directions)]
        return self._recorder.run(arguments, weights, options, names, self._layout)


@contextlib.contextmanager
def _replaced(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    """The module with an attribute of its own of that name."""
    own = module.__dict__
    had, before = name in own, own.get(name)
    own[name] = value
    try:
        yield
    finally:
        if had:
            own[name] = before
        else:
            del own[name]
