# SPDX-License-Identifier: BSD-3-Clause
"""Where convert and revert find modules, in what wrappers, and what they report."""

import dataclasses
import weakref
from collections import UserDict, UserList, namedtuple
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kit.conversions import left_by
from kit.conversions import make_lstm as lstm
from kit.twins import D, H, assert_same
from torch import Tensor, nn

import lstm_fused
from lstm_fused import FusedLSTM

F64 = torch.float64
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def some_input() -> Tensor:
    return torch.randn(6, 4, D, dtype=F64)


class OwnForward(nn.LSTM):
    def forward(self, input: Any, hx: Any = None) -> Any:  # type: ignore[override]
        return super().forward(2 * input, hx)


# Places.

Pair = namedtuple("Pair", "a b")


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.registered = lstm()
        self.listed = [self.registered, lstm()]
        self.nested = {"x": (lstm(), 3), "y": Pair(lstm(), [lstm()])}
        self.members = {lstm(), 5}
        self.__dict__["hidden"] = lstm()
        self.run = self.registered.forward
        self.run_hidden = self.hidden.forward
        self.back = [self]

    def lstms(self) -> list[Any]:
        members = [m for m in self.members if isinstance(m, nn.Module)]
        deep = [self.nested["x"][0], self.nested["y"].a, self.nested["y"].b[0]]
        runs = [self.run.__self__, self.run_hidden.__self__]
        return [self.registered, *self.listed, *deep, *members, self.hidden, *runs]


def test_modules_in_plain_containers_are_converted() -> None:
    model = Holder()
    listed = model.listed
    x = some_input()
    expected = model.registered(x)
    _, report = lstm_fused.convert(model, return_report=True)
    assert not report.left
    assert {type(module) for module in model.lstms()} == {FusedLSTM}
    assert model.listed is listed
    assert model.listed[0] is model.registered is model.run.__self__
    assert model.run_hidden.__self__ is model.hidden
    assert type(model.nested["y"]) is Pair
    assert_same(model.run(x), expected)
    assert {c.path for c in report.converted} == {
        *("registered", "listed[1]", "nested['x'][0]", "nested['y'][0]", "nested['y'][1][0]"),
        *("members", "hidden"),
    }
    lstm_fused.revert(model)
    assert {type(module) for module in model.lstms()} == {nn.LSTM}


@dataclasses.dataclass(frozen=True)
class Frozen:
    part: Any


class Slotted:
    __slots__ = ("part", "unset")

    def __init__(self, part: Any) -> None:
        self.part = part


def around(part: Any) -> Any:
    def run(x: Tensor) -> Any:
        return part(x)

    return run


HOLDERS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "key": (lambda m: {m: 1, 2: 3}, lambda h: next(iter(h))),
    "frozenset": (lambda m: frozenset([m]), lambda h: next(iter(h))),
    "UserDict": (lambda m: UserDict(a=m), lambda h: h["a"]),
    "UserList": (lambda m: UserList([m]), lambda h: h[0]),
    "namespace": (lambda m: SimpleNamespace(a=[SimpleNamespace(b=m)]), lambda h: h.a[0].b),
    "frozen": (Frozen, lambda h: h.part),
    "slots": (Slotted, lambda h: h.part),
    "partial": (lambda m: partial(m), lambda h: h.func),
    "arguments": (lambda m: partial(print, m, end=m), lambda h: h.args[0]),
    "closure": (around, lambda h: h.__closure__[0].cell_contents),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_modules_in_other_holders_are_converted(name: str) -> None:
    hold, look = HOLDERS[name]
    model: Any = nn.Module()
    module = lstm()
    model.holder = hold(module)
    model.again = {"x": hold(module)}
    expected = module(x := some_input())
    _, report = lstm_fused.convert(model, return_report=True)
    assert not report.left
    ours = look(model.holder)
    assert type(ours) is FusedLSTM
    assert ours is look(model.again["x"])
    assert_same(ours(x), expected)
    if name == "closure":
        assert_same(model.holder(x), expected)
    lstm_fused.revert(model)
    assert type(look(model.holder)) is nn.LSTM


def test_hooks_that_run_a_module_run_the_new_one() -> None:
    class Counting(nn.LSTM):
        calls = 0

        def count(self, *args: Any) -> None:
            self.calls += 1

    model: Any = nn.Sequential(lstm(Counting), nn.Identity())
    part = model[0]
    handle = model[1].register_forward_hook(lambda module, args, result: part(args[0])[0])
    model[1].register_forward_pre_hook(part.count)
    model[1].register_forward_pre_hook(partial(Counting.count, part))
    x = some_input()
    expected = part(x)[0]
    lstm_fused.convert(model)
    ours = model[0]
    asked: list[Any] = []
    ours.register_forward_hook(lambda *args: asked.append(args))
    assert_same(model[1](x), expected)
    assert (len(asked), ours.calls) == (1, 2)
    handle.remove()
    assert model[1](x) is x


def test_weak_references_follow() -> None:
    model: Any = nn.Module()
    model.lstm, other = lstm(), lstm()
    model.weak = [weakref.ref(model.lstm), weakref.ref(other)]
    lstm_fused.convert(model)
    assert model.weak[0]() is model.lstm
    assert type(model.lstm) is FusedLSTM
    assert model.weak[1]() is other


def test_proxies_follow_and_may_be_dead() -> None:
    model: Any = nn.Module()
    model.lstm, other, gone = lstm(), lstm(), nn.Identity()
    held = {"lstm": model.lstm, "other": other, "model": model, "gone": gone}
    model.holder = SimpleNamespace(**{name: weakref.proxy(value) for name, value in held.items()})
    del held, gone
    assert not left_by(model)
    assert model.holder.lstm.forward.__self__ is model.lstm
    assert type(model.lstm) is FusedLSTM
    assert model.holder.other.forward.__self__ is other
    assert model.holder.model.modules.__self__ is model


def test_slots_and_classes_of_modules() -> None:
    class Holding(nn.Module):
        __slots__ = ("hidden",)
        shared = nn.Sequential(lstm())

    model = Holding()
    object.__setattr__(model, "hidden", lstm())
    assert left_by(model) == {
        "shared.0": "it is an attribute of the class Holding: convert it there"
    }
    assert type(model.hidden) is FusedLSTM  # type: ignore[attr-defined]
    Holding.shared = lstm_fused.convert(Holding.shared)
    assert not left_by(model)


def test_what_programs_hold_is_not_searched() -> None:
    """From a module's trainer the way leads to all there is: two objects deep are looked at."""
    module = lstm()
    model: Any = nn.Module()
    model.trainer = SimpleNamespace(a=SimpleNamespace(b=SimpleNamespace(c=module), model=model))
    lstm_fused.convert(model)
    assert model.trainer.a.b.c is module
    assert model.trainer.a.model is model


def test_objects_that_answer_nothing_are_passed_over() -> None:
    class Proxy:
        """Stands for nothing yet, as a web framework's proxies do outside of a request."""

        @property
        def __dict__(self) -> Any:  # type: ignore[override]
            raise RuntimeError("nothing")

        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("nothing")

    model: Any = nn.Module()
    model.lstm, model.proxy = lstm(), Proxy()
    assert not left_by(model)
    assert type(model.lstm) is FusedLSTM


def test_models_in_plain_attributes_are_named() -> None:
    class Student(nn.Module):
        def __init__(self, teacher: nn.Module) -> None:
            super().__init__()
            self.lstm, self.teacher = lstm(), [teacher]

    teacher = nn.Sequential(lstm())
    model = Student(teacher)
    assert left_by(model) == {
        "teacher[0].0": "it is in a module that a plain attribute holds: convert that module too"
    }
    assert type(teacher[0]) is nn.LSTM
    parent = nn.Sequential(model, lstm())
    model.teacher = [parent]  # the way up is not taken
    assert not left_by(model)
    assert type(parent[1]) is nn.LSTM


def test_a_module_in_several_places_and_in_a_circle() -> None:
    shared = lstm()
    model: Any = nn.Module()
    model.a, model.b, model.c = shared, nn.ModuleList([shared]), nn.Module()
    model.c.parent = model
    _, report = lstm_fused.convert(model, return_report=True)
    assert model.a is model.b[0]
    assert {c.path for c in report.converted} == {"a", "b.0"}


# Wrappers and other kinds of modules.


def test_wrapped_models(tmp_path: Path) -> None:
    x = some_input()
    expected = lstm()(x)
    wrapped: Any = nn.DataParallel(nn.Sequential(lstm()))
    assert not left_by(wrapped)
    assert type(wrapped.module[0]) is FusedLSTM
    assert_same(wrapped(x), expected)

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        wrapped = nn.parallel.DistributedDataParallel(nn.Sequential(lstm()))
        assert not left_by(wrapped)
        assert_same(wrapped(x), expected)
        wrapped(x)[0].sum().backward()
        assert all(p.grad is not None for p in wrapped.parameters())

        from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        for sharded in (
            fully_shard(nn.Sequential(lstm()), mesh=mesh),
            nn.Sequential(fully_shard(lstm(), mesh=mesh)),
            FullyShardedDataParallel(nn.Sequential(lstm()), device_id=torch.device("cpu")),
        ):
            (reason,) = left_by(sharded).values()
            assert "swap first, then shard" in reason
            assert_same(sharded(x), expected)
    finally:
        torch.distributed.destroy_process_group()


def test_compiled_models() -> None:
    x = some_input()
    model: Any = torch.compile(nn.Sequential(lstm()), backend="eager")
    expected = model(x)
    assert not left_by(model)
    assert type(model._orig_mod[0]) is FusedLSTM
    assert_same(model(x), expected)
    assert left_by(nn.Sequential(torch.compile(lstm(), backend="eager"))) == {  # type: ignore[arg-type]
        "0._orig_mod": "it was compiled by torch.compile: swap first, then compile"
    }


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_quantised_and_scripted_models_are_named() -> None:
    model = nn.Sequential(nn.LSTM(D, H), nn.LSTMCell(D, H))
    quantized = torch.ao.quantization.quantize_dynamic(model)
    assert left_by(quantized) == dict.fromkeys("01", "it is made for quantisation")
    quantizable = nn.Sequential(torch.ao.nn.quantizable.LSTM(D, H))
    assert left_by(quantizable) == {"0": "it is made for quantisation"}
    scripted = torch.jit.script(nn.Sequential(nn.LSTM(D, H)))
    for held in (scripted, nn.Sequential(scripted)):
        (reason,) = left_by(held).values()
        assert reason == "it is TorchScript: convert first, then trace under torch.no_grad()"


def test_lazy_modules_are_named() -> None:
    class LazyLSTM(nn.modules.lazy.LazyModuleMixin, nn.LSTM):  # type: ignore[misc]
        pass

    module = LazyLSTM(D, H)
    assert left_by(nn.Sequential(module)) == {"0": "it is lazy"}
    module.weight_ih_l0 = nn.UninitializedParameter()  # type: ignore[assignment]
    assert left_by(nn.Sequential(module)) == {
        "0": "it is lazy and has no sizes yet: call it once, then convert"
    }
    lazy = nn.Sequential(nn.LazyLinear(D), nn.LSTM(D, H))
    assert not left_by(lazy)
    assert lazy(torch.randn(6, 4, 9))[0].shape == (6, 4, H)


# The report, and the way back.


def test_the_report() -> None:
    model = nn.Sequential(lstm(), OwnForward(D, H), nn.LSTMCell(D, H), nn.Linear(2, 2))
    with pytest.warns(UserWarning) as caught:
        converted, report = lstm_fused.convert(model, return_report=True)
    assert converted is model
    assert isinstance(report, lstm_fused.ConversionReport)
    assert str(report).splitlines() == [
        "0  LSTM -> FusedLSTM",
        "2  LSTMCell -> FusedLSTMCell",
        "1  OwnForward                 left: its class OwnForward overrides forward",
    ]
    assert str(caught[0].message).splitlines() == [
        "lstm_fused.convert left as they were:",
        "  1 (OwnForward): its class OwnForward overrides forward",
    ]
    assert str(lstm_fused.convert(nn.Linear(2, 2), return_report=True)[1]) == "no LSTMs found"
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module, got list"):
        lstm_fused.convert([lstm()])  # type: ignore[type-var]


def test_revert_leads_back() -> None:
    model = nn.Sequential(lstm(num_layers=2), nn.ModuleList([nn.LSTMCell(D, H, dtype=F64)]))
    before = {name: (type(m), set(m.__dict__)) for name, m in model.named_modules()}
    parameters = list(model.parameters())
    x = some_input()
    expected = model[0](x), model[1][0](x[0])  # type: ignore[index]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    lstm_fused.convert(model)
    assert lstm_fused.revert(model) is model
    assert {name: (type(m), set(m.__dict__)) for name, m in model.named_modules()} == before
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert_same((model[0](x), model[1][0](x[0])), expected)  # type: ignore[index]
    model[0](x)[0].sum().backward()
    optimizer.step()
    single = lstm_fused.revert(FusedLSTM(D, H))
    assert type(single) is nn.LSTM
    assert torch.jit.script(lstm_fused.revert(nn.Sequential(FusedLSTM(D, H)))) is not None


class OwnFused(FusedLSTM):
    pass


def test_revert_names_what_is_lost_or_left() -> None:
    model = nn.Sequential(lstm(FusedLSTM, recompute=True), lstm(FusedLSTM, backend="cudnn"))
    model.append(lstm(OwnFused))
    with pytest.warns(UserWarning) as caught:
        _, report = lstm_fused.revert(model, return_report=True)
    assert [type(m) for m in model] == [nn.LSTM, nn.LSTM, OwnFused]
    assert [c.lost for c in report.converted] == ["recompute=True", "backend='cudnn'"]
    for part in (
        "0 (LSTM): recompute=True",
        "1 (LSTM): backend='cudnn'",
        "2 (OwnFused): its class is a subclass of FusedLSTM",
    ):
        assert part in str(caught[0].message)
    assert "lost: recompute=True" in str(report)
    assert len(caught) == 1
    patched = nn.Sequential(lstm(FusedLSTM))
    patched[0].forward = lambda x: x
    assert left_by(patched, lstm_fused.revert)["0"].startswith("its instance has a forward")
