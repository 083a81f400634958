# SPDX-License-Identifier: BSD-3-Clause
"""Options of FusedLSTM's cell, which kernels of their own compute: their values, their parameters,
and what a layer is given of them in a call."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lstm_fused._ops.checks import product
from lstm_fused._ops.layer_weights import GATES
from lstm_fused._torch.module_weights import weights_of
from lstm_fused._torch.private import are_transforms_active
from lstm_fused.autograd import fast_path, lstm_layer
from lstm_fused.autograd.arguments import LayerArguments
from lstm_fused.autograd.options_layer import options_layer, options_layer_eagerly
from lstm_fused.reference_options import LayerOptions

# The bits of a random number that make a flag: enough for any probability in float32. random_ sets
# no sign.
_RANDOM_BITS = 2**31 - 1


class CellOptions(NamedTuple):
    """The options of a module, by the names of its arguments."""

    recurrent_dropout: float = 0.0
    zoneout: tuple[float, float] = (0.0, 0.0)  # of c and of h
    layer_norm: bool = False
    peephole: bool = False
    cell_clip: float | None = None
    coupled_gates: bool = False


_DEFAULTS = CellOptions()
# Options by which the module has more parameters, or another meaning of those it has.
_SETTLED = ("layer_norm", "peephole", "coupled_gates")


def cell_options(
    recurrent_dropout: Any,
    zoneout: Any,
    layer_norm: Any,
    peephole: Any,
    cell_clip: Any,
    coupled_gates: Any,
    *,
    proj_size: int,
) -> CellOptions | None:
    """The options with these values, checked; None where all are those of nn.LSTM's cell.

    Raises:
        TypeError, ValueError: values that an option cannot have, or not with an output projection.
    """
    _check_probability("recurrent_dropout", recurrent_dropout)
    if is_number(zoneout):
        zoneout = (zoneout, zoneout)
    if not isinstance(zoneout, Sequence) or isinstance(zoneout, str) or len(zoneout) != 2:
        raise TypeError(f"zoneout must be a number or two, of c and of h, got {zoneout!r}")
    for name, part in zip(("zoneout of c", "zoneout of h"), zoneout, strict=True):
        _check_probability(name, part)
    if zoneout[1] > 0 and proj_size > 0:
        raise ValueError(
            f"zoneout of h is not defined with proj_size > 0, got {zoneout[1]} and {proj_size}"
        )
    for name, flag in (
        ("layer_norm", layer_norm),
        ("peephole", peephole),
        ("coupled_gates", coupled_gates),
    ):
        if not isinstance(flag, bool):
            raise TypeError(f"{name} must be a bool, got {type(flag).__name__}")
    if cell_clip is not None and (not is_number(cell_clip) or not 0 < cell_clip < math.inf):
        raise ValueError(f"cell_clip must be a finite number > 0 or None, got {cell_clip!r}")
    options = CellOptions(
        float(recurrent_dropout),
        (float(zoneout[0]), float(zoneout[1])),
        layer_norm,
        peephole,
        None if cell_clip is None else float(cell_clip),
        coupled_gates,
    )
    return None if options == _DEFAULTS else options


def _check_probability(name: str, value: Any) -> None:
    if not is_number(value) or not 0 <= value < 1:
        raise ValueError(f"{name} must be a number in [0, 1), got {value!r}")


def is_number(value: object) -> bool:
    """Whether an option's value is a real number; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


class CellOption:
    """An option as an attribute of a module, which keeps all of them as `cell_options`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.__doc__ = f"The option {name} of the cell."

    def __get__(self, module: Any, owner: Any = None) -> Any:
        if module is None:
            return getattr(_DEFAULTS, self.name)
        return getattr(module.cell_options or _DEFAULTS, self.name)

    def __set__(self, module: Any, value: Any) -> None:
        if self.name in _SETTLED and value != self.__get__(module):
            raise AttributeError(
                f"{self.name} is settled when the module is made: it decides what its parameters "
                "are"
            )
        options = (module.cell_options or _DEFAULTS)._replace(**{self.name: value})
        module.cell_options = cell_options(*options, proj_size=module.proj_size)


def describe_options(options: CellOptions | None) -> str:
    """What differs from nn.LSTM's cell, as arguments: "peephole=True, cell_clip=3.0"."""
    return ", ".join(
        f"{name}={value!r}"
        for name, value, default in zip(
            CellOptions._fields, options or _DEFAULTS, _DEFAULTS, strict=True
        )
        if value != default
    )


def _suffixes(module: Any) -> Iterator[str]:
    for layer in range(module.num_layers):
        yield f"l{layer}"
        if module.bidirectional:
            yield f"l{layer}_reverse"


def add_cell_parameters(
    module: Any, device: torch.device | str | None, dtype: torch.dtype | None
) -> None:
    """Gives a FusedLSTM the parameters of its cell's options: for each layer and direction
    peephole_l0 (3, H), and gamma_l0 (2, 4H), gamma_c_l0 (H) and beta_c_l0 (H) of layer_norm."""
    hidden_size = module.hidden_size
    sizes: dict[str, tuple[int, ...]] = {}
    if module.peephole:
        sizes["peephole"] = (3, hidden_size)
    if module.layer_norm:
        sizes["gamma"] = (2, GATES * hidden_size)
        sizes["gamma_c"] = sizes["beta_c"] = (hidden_size,)
    for suffix in _suffixes(module):
        for name, size in sizes.items():
            value = torch.empty(size, device=device, dtype=dtype)
            module.register_parameter(f"{name}_{suffix}", nn.Parameter(value))


@torch.no_grad()
def set_initial_cell_parameters(module: Any) -> None:
    """Draws peepholes as nn.LSTM draws its weights; gains are 1, biases of norms 0."""
    bound = 1 / math.sqrt(module.hidden_size) if module.hidden_size > 0 else 0.0
    for suffix in _suffixes(module):
        if module.peephole:
            getattr(module, f"peephole_{suffix}").uniform_(-bound, bound)
        if module.layer_norm:
            getattr(module, f"gamma_{suffix}").fill_(1)
            getattr(module, f"gamma_c_{suffix}").fill_(1)
            getattr(module, f"beta_c_{suffix}").zero_()


def check_reset_state(
    reset_state: Any, reset_mask: Tensor | None, module: Any, batch: int
) -> tuple[Tensor, Tensor]:
    """reset_state for all rows of a batch, (num_layers·L, N, P) and (num_layers·L, N, H).

    Raises:
        TypeError, ValueError: it is not two tensors of these shapes, or without N.
    """
    if reset_mask is None:
        raise ValueError("reset_state needs reset_mask, got None")
    if (
        not isinstance(reset_state, tuple | list)
        or len(reset_state) != 2
        or not all(isinstance(state, Tensor) for state in reset_state)
    ):
        raise TypeError("reset_state must be a tuple of two tensors, (h, c)")
    blocks = module.num_layers * (2 if module.bidirectional else 1)
    found = []
    for name, state, size in (
        ("h", reset_state[0], module.proj_size or module.hidden_size),
        ("c", reset_state[1], module.hidden_size),
    ):
        if state.dim() == 2:
            state = state.unsqueeze(1)
        if (
            state.dim() != 3
            or state.shape[0] != blocks
            or state.shape[2] != size
            or (state.shape[1] not in (1, batch))
        ):
            raise ValueError(
                f"reset_state's {name} must have shape ({blocks}, {size}) or ({blocks}, {batch}, "
                f"{size}), got {tuple(state.shape)}"
            )
        found.append(state.expand(-1, batch, -1))
    return found[0], found[1]


class OptionsRunner:
    """Runs the layers of a call one after another, each with its own part of the options."""

    def __init__(
        self, module: Any, reset_state: tuple[Tensor, Tensor] | None, run_layer: Callable[..., Any]
    ) -> None:
        self._module = module
        # Plain layers'; lstm_fused.trace's runs those with options too.
        self._run_layer = run_layer
        self._reset_state = reset_state
        self._layer = 0

    def __call__(
        self, arguments: LayerArguments, weights: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        options = layer_options(self._module, arguments, self._layer, self._reset_state)
        self._layer += 1
        results: tuple[Tensor, Tensor, Tensor, Tensor]
        if not options.are_any:
            results = self._run_layer(arguments, weights)
        elif self._run_layer is not lstm_layer:
            results = self._run_layer(arguments, weights, options)
        else:
            results = options_layer(arguments, options, weights)
        return results


def run_one_layer(
    module: Any, input: Any, hx: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """A call of a module with one layer that may take the fast path: without what the general path
    finds out.

    Raises:
        RuntimeError: the tensors do not fit together; in the op's sentence.
    """
    x = input.transpose(0, 1).contiguous() if module.batch_first else input
    weights = module._weights()
    directions = 2 if module.bidirectional else 1
    h_0, c_0 = fast_path.zero_states(x, weights[1], directions) if hx is None else hx
    arguments = LayerArguments(x, h_0, c_0, recompute=module.recompute)
    options = layer_options(module, arguments, 0, None)
    if options.are_any:
        y, h_n, c_n = options_layer_eagerly(arguments, options, weights)
    else:
        y, h_n, c_n, _ = lstm_layer(arguments, weights)
    return y.transpose(0, 1) if module.batch_first else y, (h_n, c_n)


def layer_options(
    module: Any,
    arguments: LayerArguments,
    layer: int,
    reset_state: tuple[Tensor, Tensor] | None,
) -> LayerOptions:
    """What a layer is given of a module's options in a call, with masks drawn anew."""
    given = module.cell_options or _DEFAULTS
    input, h_0 = arguments.input, arguments.h_0
    directions = h_0.shape[0]
    suffixes = (f"l{layer}", f"l{layer}_reverse")[:directions]

    def parameters(name: str) -> Tensor:
        own = weights_of(module, [f"{name}_{suffix}" for suffix in suffixes])
        # A view costs less than a copy does. NOTE: the dtype is that to which autocast has cast the
        # input.
        values: Tensor = own[0].unsqueeze(0) if directions == 1 else torch.stack(own)
        return values if values.dtype == input.dtype else values.to(input.dtype)

    options: dict[str, Any] = {
        "coupled_gates": given.coupled_gates,
        "cell_clip": given.cell_clip or 0.0,
    }
    if given.peephole:
        options["peephole"] = parameters("peephole")
    if given.layer_norm:
        options["gains"] = parameters("gamma")
        cell_norm = (parameters("gamma_c"), parameters("beta_c"))
        options["cell_norm"] = torch.stack(cell_norm, dim=1)
    if given.recurrent_dropout and module.training:
        options["h_mask"] = _dropout_mask(h_0, given.recurrent_dropout)
    if any(given.zoneout) and module.training:
        sizes = (directions, product(input.shape[:-1]), module.hidden_size)
        flags = _random_flags(sizes, given.zoneout, input.device)
        options["keep_c"], options["keep_h"] = flags
    elif any(given.zoneout):
        options["zoneout_c"], options["zoneout_h"] = given.zoneout
    if reset_state is not None:
        blocks = slice(layer * directions, (layer + 1) * directions)
        reset_h, reset_c = (state[blocks].to(input.dtype) for state in reset_state)
        options["reset_h"], options["reset_c"] = reset_h, reset_c
    return LayerOptions(**options)


def _dropout_mask(h_0: Tensor, probability: float) -> Tensor:
    """F.dropout of ones, to the bits; on the CPU in a third of the time."""
    if torch.compiler.is_compiling() or are_transforms_active() or not h_0.is_cpu:
        return torch.dropout(h_0.new_ones(h_0.shape), probability, True)
    kept = 1 - probability
    return h_0.new_empty(h_0.shape).bernoulli_(kept).div_(kept)


def _random_flags(
    sizes: tuple[int, ...], probabilities: tuple[float, float], device: torch.device
) -> list[Tensor | None]:
    """True with these probabilities; None in the place of 0.

    Halves of random 64-bit numbers, of 31 bits each. Measured: a fifth of the time that bernoulli_
    takes for both.
    """
    wanted = [probability for probability in probabilities if probability > 0]
    flags = (len(wanted), *sizes)
    count = product(flags)
    is_even = sizes[-1] % 2 == 0  # then each number makes two flags of one row
    halved = (*flags[:-1], sizes[-1] // 2) if is_even else ((count + 1) // 2,)
    numbers = torch.empty(halved, dtype=torch.int64, device=device)
    # NOTE: Dynamo traces no Tensor.random_.
    is_compiling = torch.compiler.is_compiling()
    numbers = torch.ops.aten.random.default(numbers) if is_compiling else numbers.random_()
    bits = numbers.view(torch.int32).bitwise_and_(_RANDOM_BITS)
    bits = bits if is_even else bits[:count].view(flags)
    limits = [round(probability * (_RANDOM_BITS + 1)) for probability in wanted]
    if limits[0] == limits[-1]:
        drawn = iter((bits < limits[0]).unbind())
    else:
        drawn = iter(own < limit for own, limit in zip(bits, limits, strict=True))
    return [next(drawn) if probability > 0 else None for probability in probabilities]
