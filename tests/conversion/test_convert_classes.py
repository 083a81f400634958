# SPDX-License-Identifier: BSD-3-Clause
"""What subclasses of nn.LSTM bring with them, and what users set on a module, in a conversion."""

import functools
from typing import Any, Generic, TypeVar

import pytest
from kit.conversions import left_by
from kit.conversions import make_lstm as lstm
from kit.twins import D, H
from torch import nn

import lstm_fused
from lstm_fused import FusedLSTM


class Tagged(nn.LSTM):
    """Keeps a list of its subclasses, as registries of models do, and wants an argument."""

    known: tuple[str, ...] = ()

    def __init_subclass__(cls, *, tag: str) -> None:
        Tagged.known += (cls.__name__,)
        cls.tag = tag  # type: ignore[attr-defined]


class OfTagged(Tagged, tag="a"):
    pass


class Kind(type):
    @property
    def mark(cls) -> str:
        return f"<{cls.__name__}>"


class OfKind(nn.LSTM, metaclass=Kind):
    pass


class Refusing(type):
    def __new__(cls, name: str, bases: Any, body: Any) -> Any:
        if name.startswith("Fused"):
            raise KeyError(name)
        return super().__new__(cls, name, bases, body)


class OfRefusing(nn.LSTM, metaclass=Refusing):
    pass


S = TypeVar("S")


class OfGeneric(nn.LSTM, Generic[S]):
    pass


class Cached(nn.LSTM):
    @functools.cached_property
    def width(self) -> int:
        return 2 * self.hidden_size


class CachedSuper(nn.LSTM):
    @functools.lru_cache  # noqa: B019
    def text(self) -> str:
        return super().extra_repr()


class CachedSuperProperty(nn.LSTM):
    @functools.cached_property
    def text(self) -> str:
        return super().extra_repr()


class AsksForItself(nn.LSTM):
    def is_mine(self) -> bool:
        return isinstance(self, AsksForItself)


def test_what_defining_a_subclass_did_is_not_done_again() -> None:
    known = Tagged.known
    ours: Any = lstm_fused.convert(OfTagged(D, H))
    assert isinstance(ours, FusedLSTM)
    assert (ours.tag, Tagged.known) == ("a", known)
    assert type(lstm_fused.revert(ours)) is OfTagged


def test_metaclasses_and_generic_classes() -> None:
    ours: Any = lstm_fused.convert(OfKind(D, H))
    assert isinstance(ours, FusedLSTM)
    assert type(ours).mark == "<FusedOfKind>"
    generic: Any = lstm_fused.convert(OfGeneric[int](D, H))
    assert isinstance(generic, FusedLSTM)
    assert type(lstm_fused.revert(generic)) is OfGeneric
    cached: Any = lstm_fused.convert(Cached(D, H))
    assert (isinstance(cached, FusedLSTM), cached.width) == (True, 2 * H)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (OfRefusing, "no class like OfRefusing can be made: KeyError: 'FusedOfRefusing'"),
        (CachedSuper, "its class CachedSuper calls super() in text, which is wrapped"),
        (
            CachedSuperProperty,
            "its class CachedSuperProperty calls super() in text, which is wrapped",
        ),
        (
            AsksForItself,
            "its class AsksForItself calls isinstance(..., AsksForItself) in is_mine",
        ),
    ],
)
def test_classes_that_cannot_be_built_anew_are_left(kind: Any, reason: str) -> None:
    model = nn.Sequential(kind(D, H))
    assert left_by(model) == {"0": reason}
    assert type(model[0]) is kind


def test_containers_that_users_set_stay_the_same() -> None:
    module: Any = lstm()
    module.notes, module.steps = {"a": 1}, [1]
    kept = module.notes, module.steps
    copied: Any = FusedLSTM.from_torch(module)
    ours: Any = lstm_fused.convert(nn.Sequential(module))[0]  # type: ignore[index]
    back: Any = lstm_fused.revert(nn.Sequential(ours))[0]  # type: ignore[index]
    for other in (copied, ours, back):
        assert other.notes is kept[0]
        assert other.steps is kept[1]
