# SPDX-License-Identifier: BSD-3-Clause
"""`_flat_weights`, nn.LSTM's list of its weights, for code that reads or assigns it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from lstm_fused._torch.module_weights import weights_of
from lstm_fused._torch.sizes import (
    have_other_sizes,
    is_new_size,
    refuse_other_sizes,
    shapes_of_lstm,
)

# In the place of a tensor that has died since a weak reference to it was made.
_GONE = object()


class ByName(nn.RNNBase):
    """An nn.RNNBase that reads its weights by name at each call, and keeps no list of them.

    Where code asks for `_flat_weights`, or assigns it, as adapters and weight drop for nn.LSTM do,
    there is a list from then on, with the meaning that it has in nn.LSTM: calls take the tensors in
    it, until a name stands for another tensor than it did when the list was made or assigned; then
    the names count again, all of them.
    """

    # The list, or None; and what the names stood for when it was made, None where nothing.
    _listed: Any = None
    _listed_from: tuple[Any, ...] = ()
    # Whether a size was assigned after construction, so that calls compare it with the weights.
    _is_resized = False

    def _weights(self) -> list[Any]:
        """The tensors to compute with.

        Raises:
            RuntimeError: there is none of some name, or their number is wrong, or they are not of
                the sizes that were assigned.
        """
        if self._listed is None and not self._is_resized:
            return weights_of(self, self._flat_weights_names)
        weights = self._listed_weights()
        if self._is_resized:
            refuse_other_sizes(self, self._flat_weights_names, weights, shapes_of_lstm(self))
        return weights

    def _listed_weights(self) -> list[Any]:
        self._update_flat_weights()
        if self._listed is None:
            return weights_of(self, self._flat_weights_names)
        names, listed = self._flat_weights_names, list(self._listed)
        if len(listed) != len(names):
            raise RuntimeError(
                f"{type(self).__name__}: _flat_weights must hold {len(names)} tensors, "
                f"{', '.join(names)}, got {len(listed)}"
            )
        for name, weight in zip(names, listed, strict=True):
            if weight is None:
                raise RuntimeError(f"{type(self).__name__} needs a tensor {name}, got none")
        return listed

    def _named(self) -> list[Any]:
        return [getattr(self, name, None) for name in self._flat_weights_names]

    @property
    def _flat_weights(self) -> Any:
        if self._listed is not None:
            return self._listed
        listed = self._named()
        if not torch.compiler.is_compiling():
            self.__dict__.update(_listed=listed, _listed_from=tuple(listed))
        return listed

    @_flat_weights.setter
    def _flat_weights(self, value: Any) -> None:
        self.__dict__.update(_listed=value, _listed_from=tuple(self._named()))

    @property
    def _flat_weight_refs(self) -> list[Any]:
        tensors = self._named() if self._listed is None else self._listed_from
        return [None if tensor is None else weakref.ref(tensor) for tensor in tensors]

    @_flat_weight_refs.setter
    def _flat_weight_refs(self, value: list[Any]) -> None:
        # NOTE: the references are held strongly: torch.utils.swap_tensors refuses tensors that have
        # weak ones.
        if self._listed is not None and len(value) == len(self._flat_weights_names):
            tensors = [None if ref is None else ref() for ref in value]
            pairs = zip(value, tensors, strict=True)
            alive = tuple(_GONE if t is None and ref is not None else t for ref, t in pairs)
            self.__dict__["_listed_from"] = alive

    def _weights_have_changed(self) -> bool:
        """Whether a name stands for another tensor than it did when the list was made."""
        if self._listed is None:
            return False
        for old, name in zip(self._listed_from, self._flat_weights_names, strict=True):
            weight = None if old is None else getattr(self, name, None)
            if weight is not None and weight is not old:
                return True
        return False

    def _init_flat_weights(self) -> None:
        """nn.LSTM makes its list here; without one the names count."""
        self.__dict__.pop("_listed", None)
        self.__dict__.pop("_listed_from", None)

    def __setattr__(self, name: str, value: Any) -> None:
        if self._listed is not None and name in self._flat_weights_names:
            self._listed[self._flat_weights_names.index(name)] = value
        if is_new_size(self, name, value):
            self.__dict__["_is_resized"] = True
        nn.Module.__setattr__(self, name, value)

    def __getstate__(self) -> dict[str, Any]:
        self._update_flat_weights()
        state = self.__dict__.copy()
        state.pop("_listed_from", None)
        if self._listed is not None and not _differ(self._listed, self):
            del state["_listed"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state.pop("_flat_weight_refs", None)
        # NOTE: RNNBase takes the list that comes with the state for what the names stand for, so
        # that a copy goes back to the names where it can; and makes a list where there is none.
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if "_listed" not in state:
            self._init_flat_weights()

    def _note_sizes(self) -> None:
        """Has calls compare sizes and weights, if those that another module gave do not fit."""
        if have_other_sizes(self, self._flat_weights_names, shapes_of_lstm(self)):
            self.__dict__["_is_resized"] = True

    def _replicate_for_data_parallel(self) -> Any:
        replica: Any = nn.Module._replicate_for_data_parallel(self)  # type: ignore[no-untyped-call]
        if self._listed is not None:
            replica.__dict__["_listed"] = list(self._listed)
        return replica

    def flatten_parameters(self) -> None:
        """Does nothing: the kernels take the weights where they are. Kept for nn.LSTM's callers."""


def carry_list(source: nn.Module, target: nn.Module, replaces: bool) -> None:
    """Gives `target`, which shares source's parameters, what was assigned to source's
    `_flat_weights`: the list itself if target `replaces` source, else a copy."""
    if not isinstance(source, nn.RNNBase) or parametrize.is_parametrized(source):
        return  # a parametrized weight is another tensor at each look: the names count
    source._update_flat_weights()
    listed = source._listed if isinstance(source, ByName) else source._flat_weights
    if listed is not None and _differ(listed, source):
        target._flat_weights = listed if replaces else list(listed)  # type: ignore[assignment]


def _differ(listed: Sequence[Any], module: nn.RNNBase) -> bool:
    """Whether a list holds other tensors than the names of the module's weights stand for."""
    named = [getattr(module, name, None) for name in module._flat_weights_names]
    return len(named) != len(listed) or any(a is not b for a, b in zip(listed, named, strict=True))
