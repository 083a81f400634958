# SPDX-License-Identifier: BSD-3-Clause
"""`_flat_weights` read and assigned, as adapters, weight drop and quantisers for nn.LSTM do."""

import copy
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kit.twins import D, H, assert_same, make_twins
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import lstm_fused
from lstm_fused import FusedLSTM

F64 = torch.float64
NAME = "weight_hh_l0"


def some_input() -> Tensor:
    return torch.randn(6, 4, D, dtype=F64)


def scaled(weights: Any, factor: float) -> list[Tensor]:
    return [w.detach() * factor for w in weights]


# What is assigned is computed with.


def test_an_assigned_list_is_computed_with() -> None:
    ours, theirs = make_twins(num_layers=2)
    x = some_input()
    for module in (ours, theirs):
        module._flat_weights = scaled(module.parameters(), 0.5)
    assert_same(ours(x), theirs(x))
    assert_same(ours(x, None, lengths=torch.full((4,), 6))[0], theirs(x)[0])
    plain = ours.to_torch()  # with the list as well
    assert_same(plain(x), theirs(x))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("compiled", [False, True])
def test_an_assigned_item_is_computed_with_and_gets_the_gradient(
    layers: int, compiled: bool
) -> None:
    """LoRA: a product of two small matrices on top of a frozen weight."""
    results = []
    for module in make_twins(num_layers=layers):
        torch.manual_seed(1)
        module.requires_grad_(False)
        a, b = (torch.randn(*s, dtype=F64, requires_grad=True) for s in ((4 * H, 2), (2, H)))
        index = module._flat_weights_names.index(NAME)
        x = some_input()
        module._flat_weights[index] = module.weight_hh_l0 + a @ b
        if compiled and isinstance(module, FusedLSTM):
            run: Any = torch.compile(module, backend="eager", fullgraph=True)
        else:
            run = module
        y = run(x)[0]
        results.append((y, *torch.autograd.grad(y.square().sum(), (a, b))))
    assert_same(*map(tuple, results))


class LoRA(nn.Module):
    """Assigns the whole list at each call; the module is found by the caller's class."""

    def __init__(self, lstm: nn.RNNBase) -> None:
        super().__init__()
        self.lstm = lstm.requires_grad_(False)
        self.a = nn.Parameter(torch.full((4 * H, 1), 0.1, dtype=F64))
        self.b = nn.Parameter(torch.full((1, H), 0.2, dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        weights = {name: getattr(self.lstm, name) for name in self.lstm._flat_weights_names}
        weights[NAME] = weights[NAME] + self.a @ self.b
        self.lstm._flat_weights = list(weights.values())
        return self.lstm(x)[0]  # type: ignore[no-any-return]


def train(model: nn.Module, x: Tensor) -> list[Tensor]:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        losses.append(model(x).square().mean())
        losses[-1].backward()
        optimizer.step()
    return losses


@pytest.mark.parametrize("converts", [False, True])
def test_adapters_train(converts: bool) -> None:
    ours, theirs = make_twins()
    x = some_input()
    model = LoRA(copy.deepcopy(theirs) if converts else ours)
    if converts:
        train(model, x)
        lstm_fused.convert(model)
        reference = LoRA(theirs)
        reference.load_state_dict(model.state_dict())
    else:
        reference = LoRA(theirs)
    losses, expected = train(model, x), train(reference, x)
    assert losses[-1] < losses[0]
    assert_same(tuple(losses), tuple(expected))


class WeightDrop(nn.Module):
    """AWD-LSTM's: the weight is no parameter any more, and set before each call."""

    def __init__(self, module: nn.RNNBase, through_list: bool) -> None:
        super().__init__()
        self.module, self.through_list = module, through_list
        weight = getattr(module, NAME)
        delattr(module, NAME)
        self.raw = nn.Parameter(weight.detach())
        module.flatten_parameters = lambda: None  # type: ignore[method-assign]

    def forward(self, x: Tensor) -> Any:
        weight = F.dropout(self.raw, 0.5, self.training)
        if self.through_list:
            index = self.module._flat_weights_names.index(NAME)
            self.module._flat_weights[index] = weight
        else:
            setattr(self.module, NAME, weight)
        return self.module(x)


@pytest.mark.parametrize("through_list", [False, True])
def test_weight_drop(through_list: bool) -> None:
    x = some_input()
    results = []
    for module in make_twins(num_layers=2):
        model = WeightDrop(module, through_list)
        torch.manual_seed(2)
        first, y = model(x)[0], model(x)[0]
        assert not torch.equal(first, y)
        results.append((y.detach(), torch.autograd.grad(y.square().sum(), model.raw)[0]))
    assert_same(*results)


def test_a_list_of_nn_lstm_survives_conversions() -> None:
    _, theirs = make_twins()
    x = some_input()
    theirs._flat_weights[1] = theirs._flat_weights[1].detach() * 2
    expected = theirs(x)
    assert_same(FusedLSTM.from_torch(theirs)(x), expected)
    assert_same(FusedLSTM.from_torch(theirs).to_torch()(x), expected)
    kept = theirs._flat_weights
    model: Any = lstm_fused.convert(nn.Sequential(theirs))
    assert_same(model(x), expected)
    kept[1] = kept[1] * 0.5  # whoever holds the list goes on with it
    theirs._flat_weights[1] = theirs._flat_weights[1]
    assert_same(model(x), make_twins()[1](x))


# A list that was only read changes nothing.


def test_reading_the_list_leaves_no_trace() -> None:
    ours, theirs = make_twins()
    weights = ours._flat_weights
    assert weights is ours._flat_weights
    assert [id(w) for w in weights] == [id(p) for p in ours.parameters()]
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert twin.__dict__.keys() == FusedLSTM(D, H).__dict__.keys()
    # Weak references would keep torch from swapping; a copy has none either.
    for module in (ours, copy.deepcopy(ours)):
        torch.utils.swap_tensors(module.weight_hh_l0, nn.Parameter(module.weight_hh_l0.detach()))
    ours.weight_hh_l0 = nn.Parameter(ours.weight_hh_l0.detach() * 2)
    theirs.weight_hh_l0.data.mul_(2)
    x = some_input()
    assert_same(ours(x), theirs(x))
    assert_same(ours.half().double()(x), theirs.half().double()(x))


@pytest.mark.parametrize("reads", [False, True])
def test_what_copies_of_torchs_forward_call(reads: bool) -> None:
    ours, theirs = make_twins(num_layers=2)
    x = some_input()
    for module in (ours, theirs):
        if reads:
            len(module._flat_weights)
        assert not module._weights_have_changed()
        module._update_flat_weights()
        assert len(module._flat_weight_refs) == 8
        named = [getattr(module, name) for name in module._flat_weights_names]
        assert all(r() is w for r, w in zip(module._flat_weight_refs, named, strict=True))
        module.weight_hh_l0 = nn.Parameter(module.weight_hh_l0.detach() * 2)
        module._update_flat_weights()
        module._init_flat_weights()
        assert not module._weights_have_changed()
    assert_same(nn.LSTM.forward(ours, x), theirs(x))  # type: ignore[arg-type]


def test_replicas_have_lists_of_their_own() -> None:
    ours, _ = make_twins()
    ours._flat_weights[1] = ours._flat_weights[1].detach() * 2
    x = some_input()
    expected = ours(x)
    replica = ours._replicate_for_data_parallel()
    for name, parameter in ours.named_parameters():
        setattr(replica, name, parameter.clone())  # as torch.nn.parallel.replicate does
    assert_same(ours(x), expected)
    assert_same(replica(x), make_twins()[1](x))  # as nn.LSTM's: the names count again


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([], "FusedLSTM: _flat_weights must hold 4 tensors, weight_ih_l0, .*, got 0"),
        ([None] * 4, "FusedLSTM needs a tensor weight_ih_l0, got none"),
    ],
)
def test_lists_that_do_not_fit(weights: list[Any], message: str) -> None:
    ours, _ = make_twins()
    ours._flat_weights = weights
    with pytest.raises(RuntimeError, match=message):
        ours(some_input())


def test_a_deleted_weight_is_named() -> None:
    ours, _ = make_twins()
    del ours.weight_hh_l0
    assert ours._flat_weights[1] is None
    with pytest.raises(RuntimeError, match="FusedLSTM needs a tensor weight_hh_l0, got none"):
        ours(some_input())


# Any sequence of what is done to a module's weights, against nn.LSTM.


def assign_all(module: Any) -> Any:
    module._flat_weights = scaled(module._flat_weights, 0.75)


def assign_item(module: Any) -> Any:
    module._flat_weights[2] = module._flat_weights[2].detach() + 0.125


def assign_slice(module: Any) -> Any:
    module._flat_weights[:2] = scaled(module._flat_weights[:2], 1.25)


def assign_references(module: Any) -> Any:
    module._flat_weight_refs = [None if w is None else lambda w=w: w for w in module._flat_weights]


def set_name(module: Any) -> Any:
    weight = module.bias_hh_l0.detach() * 1.5
    is_parameter = "bias_hh_l0" in module._parameters
    module.bias_hh_l0 = nn.Parameter(weight) if is_parameter else weight


def set_same(module: Any) -> Any:
    module.weight_ih_l0 = module.weight_ih_l0


def delete_name(module: Any) -> Any:
    weight = module.weight_hh_l0.detach() * 0.875
    del module.weight_hh_l0
    module._flat_weights[1] = weight
    module.weight_hh_l0 = weight if random.random() < 0.5 else nn.Parameter(weight)


def change_in_place(module: Any) -> Any:
    with torch.no_grad():
        module.bias_ih_l0.add_(0.25)


def move(module: Any) -> Any:
    module.float().double()


def load(module: Any) -> Any:
    module.load_state_dict({k: v + 0.25 for k, v in module.state_dict().items()}, assign=True)


def call_with_others(module: Any) -> Any:
    weights = {name: p.detach() * 2 for name, p in module.named_parameters()}
    torch.func.functional_call(module, weights, (torch.ones(2, 3, D, dtype=F64),))


def parametrized(module: Any) -> Any:
    if not parametrize.is_parametrized(module) and "bias_ih_l0" in module._parameters:
        parametrize.register_parametrization(module, "bias_ih_l0", nn.Tanh())
        parametrize.remove_parametrizations(module, "bias_ih_l0")


def pickled(module: Any) -> Any:
    return pickle.loads(pickle.dumps(module))


ACTIONS: tuple[Callable[[Any], Any], ...] = (
    *(assign_all, assign_item, assign_slice, assign_references, set_name, set_same, delete_name),
    *(change_in_place, move, load, call_with_others, parametrized, copy.deepcopy, pickled),
)


@pytest.mark.parametrize("seed", range(40))
def test_any_sequence_is_nn_lstms(seed: int) -> None:
    ours, theirs = make_twins()
    x = some_input()
    done = []
    for step in range(12):
        action = random.Random(100 * seed + step).choice(ACTIONS)
        done.append(getattr(action, "__name__", "deepcopy"))
        results = []
        for module in (ours, theirs):
            random.seed(seed)
            results.append(action(module) or module)
        ours, theirs = results
        try:
            assert_same(ours(x), theirs(x))
        except AssertionError as problem:
            raise AssertionError(f"after {done}: {problem}") from None
        if seed % 2 == 0:  # else the list is there only after an action that asks for it
            pairs = zip(ours._flat_weights, theirs._flat_weights, strict=True)
            assert all(torch.equal(mine, expected) for mine, expected in pairs), done
