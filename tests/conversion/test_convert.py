# SPDX-License-Identifier: BSD-3-Clause
"""What convert and revert meet in real models: each thing is converted rightly, or named."""

import abc
import copy
import functools
import gc
import pickle
import re
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kit.conversions import left_by
from kit.conversions import make_lstm as lstm
from kit.twins import D, H, assert_same
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import lstm_fused
from lstm_fused import FusedLSTM, FusedLSTMCell

F64 = torch.float64
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def some_input() -> Tensor:
    return torch.randn(6, 4, D, dtype=F64)


# Subclasses.


class Empty(nn.LSTM):
    pass


class Amp(nn.LSTM):
    """As neural-amp-modeler's: initial values of its own, and properties."""

    tweaks = 2.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.initial = nn.Parameter(torch.zeros(self.hidden_size, dtype=F64))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        with torch.no_grad():
            self.bias_ih_l0[H : 2 * H] += self.tweaks

    @property
    def input_size(self) -> int:  # type: ignore[override]
        return self._own_input_size

    @input_size.setter
    def input_size(self, value: int) -> None:
        self._own_input_size = value

    @property
    def num_states(self) -> int:
        return 2 * self.num_layers

    def extra_repr(self) -> str:
        return f"{self.input_size}, {type(super()).__name__}"

    @classmethod
    def named(cls) -> str:
        return cls.__name__

    @staticmethod
    def factor() -> int:
        return 3

    @torch.no_grad()
    def norm(self) -> Tensor:
        super().flatten_parameters()
        return self.weight_hh_l0.norm()


class Deeper(Amp):
    def reset_parameters(self) -> None:
        super().reset_parameters()
        with torch.no_grad():
            self.bias_hh_l0.fill_(0.5)


class RNN(abc.ABC, nn.RNNBase):
    """As pytorch-forecasting's mixin for LSTM and GRU, of sequences of length 0 too."""

    @abc.abstractmethod
    def init_hidden_state(self, x: Tensor) -> Any: ...

    def forward(self, x: Any, hx: Any = None, lengths: Any = None) -> Any:
        if isinstance(x, PackedSequence) or lengths is None:
            return super().forward(x, hx=hx)  # type: ignore[misc]
        if hx is None:
            hx = self.init_hidden_state(x)
        packed = pack_padded_sequence(
            x, lengths.clamp(min=1), batch_first=self.batch_first, enforce_sorted=False
        )
        y, (h, c) = super().forward(packed, hx=hx)  # type: ignore[misc]
        empty = (lengths == 0)[None, :, None]
        hidden = torch.where(empty, hx[0], h), torch.where(empty, hx[1], c)
        return pad_packed_sequence(y, batch_first=self.batch_first)[0], hidden


class Forecaster(RNN, nn.LSTM):
    def init_hidden_state(self, x: Tensor) -> Any:
        zeros = x.new_zeros(self.num_layers, x.shape[0 if self.batch_first else 1], H)
        return zeros + 0.5, zeros


class OwnCell(nn.LSTMCell):
    def twice(self, x: Tensor) -> Any:
        return self(x, self(x))


@pytest.mark.parametrize("kind", [Empty, Amp, Deeper, Forecaster])
@pytest.mark.parametrize(
    "copied", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_subclasses_become_subclasses(kind: Any, copied: Callable[[Any], Any]) -> None:
    theirs = lstm(kind)
    x = some_input()
    expected = theirs(x)
    model, report = lstm_fused.convert(nn.Sequential(copy.deepcopy(theirs)), return_report=True)
    ours: Any = copied(model)[0]
    assert isinstance(ours, FusedLSTM)
    assert not isinstance(ours, nn.LSTM)
    assert [(c.path, c.before, c.after) for c in report.converted] == [
        ("0", kind.__name__, f"Fused{kind.__name__}")
    ]
    assert_same(ours(x), expected)
    assert repr(ours) == "Fused" + repr(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for module in (ours, theirs):
        torch.manual_seed(1)
        module.reset_parameters()
    assert_same(tuple(ours.parameters()), tuple(theirs.parameters()))
    assert_same(ours(x), theirs(x))
    back: Any = lstm_fused.revert(nn.Sequential(ours))[0]
    assert type(back) is kind
    assert back.__dict__.keys() == theirs.__dict__.keys()
    assert_same(back(x), theirs(x))


def test_methods_of_subclasses_go_on() -> None:
    ours: Any = lstm_fused.convert(lstm(Deeper))
    theirs = lstm(Deeper)
    assert (ours.input_size, ours.num_states, ours.factor()) == (D, 2, 3)
    assert ours.named() == "FusedDeeper"
    assert torch.equal(ours.norm(), theirs.norm())
    assert type(lstm_fused.convert(lstm(Amp))) is type(ours).__bases__[0], "built once"
    assert torch.compile(ours, backend="eager", fullgraph=True)(some_input())[0].shape == (6, 4, H)
    cell: Any = lstm_fused.convert(OwnCell(D, H, dtype=F64))
    assert isinstance(cell, FusedLSTMCell)
    x = torch.randn(4, D, dtype=F64)
    assert_same(cell.twice(x), cell.to_torch().twice(x))
    assert type(cell.to_torch()) is OwnCell


def test_a_mixin_that_leaves_the_lstm_to_super_runs_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = (
        lstm_fused.convert(lstm(Forecaster, num_layers=2)),
        lstm(Forecaster, num_layers=2),
    )
    x, lengths = some_input(), torch.tensor([6, 0, 3, 1])
    expected = theirs(x, lengths=lengths)
    monkeypatch.setattr(torch._VF, "lstm", None)
    assert_same(ours(x, lengths=lengths), expected)
    assert isinstance(lstm_fused.convert(Forecaster(D, H)), RNN)


class OwnForward(nn.LSTM):
    def forward(self, input: Any, hx: Any = None) -> Any:  # type: ignore[override]
        return super().forward(2 * input, hx)


class OfOwnForward(OwnForward):
    pass


class OwnChecks(nn.LSTM):
    def check_input(self, input: Any, batch_sizes: Any) -> None:
        pass


class OwnWeights(nn.LSTM):
    def _init_flat_weights(self) -> None:
        super()._init_flat_weights()


class ExplicitSuper(nn.LSTM):
    def extra_repr(self) -> str:
        return super(ExplicitSuper, self).extra_repr()  # noqa: UP008


class Hiding(nn.LSTM):
    backend = "own"


class Computing:
    def forward(self, input: Any, hx: Any = None) -> Any:
        zeros = input.new_zeros(1, input.shape[1], H)
        return torch._VF.lstm(
            input, (zeros, zeros), self._flat_weights, True, 1, 0.0, False, False, False
        )


class OfComputing(Computing, nn.LSTM):
    pass


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (OwnForward, "its class OwnForward overrides forward"),
        (OfOwnForward, "its class OwnForward overrides forward"),
        (OwnChecks, "its class OwnChecks overrides check_input"),
        (OwnWeights, "its class OwnWeights overrides _init_flat_weights"),
        (ExplicitSuper, "its class ExplicitSuper calls super(ExplicitSuper, ...) in extra_repr"),
        (Hiding, "its backend would hide FusedLSTM's"),
        (OfComputing, "its class Computing overrides forward"),
    ],
)
def test_subclasses_that_compute_otherwise_are_left(kind: Any, reason: str) -> None:
    model = nn.Sequential(OrderedDict(a=nn.ModuleList([lstm(kind), nn.LSTM(D, H)])))
    before = model.a[0]
    x = some_input()
    expected = before(x)
    assert left_by(model) == {"a.0": reason}
    assert model.a[0] is before
    assert_same(model.a[0](x)[:2], expected[:2])
    assert type(model.a[1]) is FusedLSTM
    with pytest.raises(TypeError, match=re.escape(f"cannot take this {kind.__name__}: {reason}")):
        FusedLSTM.from_torch(before)


# Instances.


def patch_forward(module: Any) -> None:
    module.forward = functools.partial(type(module).forward, module)


def patch_check(module: Any) -> None:
    module.check_forward_args = lambda *args: None


def hide(module: Any) -> None:
    module.recompute = 1


def compile_in_place(module: Any) -> None:
    module.compile(backend="eager")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (patch_forward, "its instance has a forward of its own"),
        (patch_check, "its instance has a check_forward_args of its own"),
        (hide, "its attribute recompute would hide FusedLSTM's"),
        (compile_in_place, "it was compiled by module.compile()"),
        (
            lambda m: m.to(torch.complex64),
            "its dtype is torch.complex64, and there are kernels for ",
        ),
    ],
)
def test_instances_that_cannot_be_converted_are_left(spoil: Any, reason: str) -> None:
    model = nn.Sequential(lstm())
    spoil(model[0])
    before = model[0]
    (found,) = left_by(model).values()
    assert found.startswith(reason)
    assert model[0] is before
    with pytest.raises(TypeError, match=re.escape(f"from_torch cannot take this LSTM: {reason}")):
        FusedLSTM.from_torch(before)


def test_a_complex_lstm_goes_on() -> None:
    theirs = nn.LSTM(D, H, dtype=torch.complex64)
    x = torch.randn(6, 4, D, dtype=torch.complex64)
    expected = theirs(x)[0]
    with pytest.warns(UserWarning, match=r"\(the model\) \(LSTM\): its dtype is torch.complex64"):
        assert torch.equal(lstm_fused.convert(theirs)(x)[0], expected)
    cell = nn.LSTMCell(D, H, dtype=torch.complex128)
    assert "complex128" in left_by(cell)[""]


def test_a_harmless_patch_is_kept() -> None:
    """fastai's weight drop patches flatten_parameters, with a bound method or a function."""
    model: Any = nn.Sequential(lstm(), lstm())
    model[0].flatten_parameters = lambda: 7
    model[1].flatten_parameters = model[1].flatten_parameters
    assert not left_by(model)
    assert model[0].flatten_parameters() == 7
    assert model[1].flatten_parameters.__self__ is model[1]


def test_hooks_that_are_methods_are_the_new_modules() -> None:
    class Counting(nn.LSTM):
        calls = 0

        def count(self, *args: Any) -> None:
            self.calls += 1

    module = lstm(Counting)
    module.register_forward_hook(module.count)
    ours: Any = lstm_fused.convert(module)
    ours(some_input())
    assert ours.calls == 1


def test_devices_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.LSTM(D, H))
    assert not left_by(model)

    class Tensor:  # of a device that this machine lacks
        device, dtype = torch.device("mps:0"), torch.float32
        is_complex = is_floating_point = lambda self: False

    model = nn.Sequential(nn.LSTM(D, H))
    monkeypatch.setattr(lstm_fused._convert.reasons, "_tensors", lambda module: [Tensor()])
    assert left_by(model) == {"0": "it is on mps:0, for which this installation has no kernels"}


@pytest.mark.parametrize("reparametrize", [torch.nn.utils.weight_norm, weight_norm, prune.identity])
def test_reparametrised_subclasses(reparametrize: Any) -> None:
    theirs = lstm(Amp)
    reparametrize(theirs, "weight_hh_l0")
    x = some_input()
    expected = theirs(x)
    ours: Any = lstm_fused.convert(theirs)
    assert isinstance(ours, FusedLSTM)
    assert_same(ours(x), expected)
    back = lstm_fused.revert(ours)
    assert parametrize.type_before_parametrizations(back) is Amp
    assert_same(back(x), expected)


def test_classes_are_freed() -> None:
    def convert_local() -> Any:
        class Local(nn.LSTM):
            def extra_repr(self) -> str:
                return super().extra_repr() + "!"

        ours: Any = lstm_fused.convert(Local(D, H))
        assert repr(ours) == f"FusedLocal({D}, {H}!)"
        return weakref.ref(Local), weakref.ref(type(ours))

    references = convert_local()
    gc.collect()
    assert [reference() for reference in references] == [None, None]


@pytest.mark.filterwarnings("ignore:lstm_fused.convert left:UserWarning")
def test_pickles_name_no_private_module() -> None:
    """A pickle is loaded by the names in it, which must stay when files move."""
    model, report = lstm_fused.convert(
        nn.Sequential(Amp(D, H), nn.LSTMCell(D, H), OwnForward(D, H)), return_report=True
    )
    for thing in (*model, FusedLSTM(D, H, recompute=True), report):
        pickled = pickle.dumps(thing)
        assert b"lstm_fused._" not in pickled, type(thing)
        assert str(pickle.loads(pickled)) == str(thing)
