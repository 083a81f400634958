# SPDX-License-Identifier: BSD-3-Clause
"""FusedLSTMModule in the place of TorchRL's LSTMModule, against it over nn.LSTM."""

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from kit.twins import D, H, assert_same
from torch import Tensor, nn

import lstm_fused
from lstm_fused import FusedLSTM

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    modules: Any = pytest.importorskip("torchrl.modules", reason="torchrl is not installed")
    from tensordict import TensorDict

    from lstm_fused.torchrl import FusedLSTMModule

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
F64 = torch.float64
HIDDEN = ("recurrent_state_h", "recurrent_state_c")
OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_layers": 3, "bias": False},
    {"num_layers": 2, "proj_size": 2},
    {"num_layers": 2, "bidirectional": True},
]


def twins(**options: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    theirs = modules.LSTMModule(D, H, in_key="x", out_key="y", **options).to(F64)
    return lstm_fused.convert(copy.deepcopy(theirs)), theirs


def data_for(module: Any, sizes: tuple[int, ...], starts: float, states: str) -> Any:
    """Observations, beginnings of trajectories and, unless `states` is "absent", recorded states,
    which are at these beginnings zero or, if "kept", not."""
    torch.manual_seed(1)
    is_init = torch.rand(*sizes, 1) < starts
    values = {"x": torch.randn(*sizes, D, dtype=F64), "is_init": is_init}
    lstm = module.lstm
    count = lstm.num_layers * (2 if lstm.bidirectional else 1)
    for name, width in zip(HIDDEN, (lstm.proj_size or H, H), strict=True):
        state = torch.randn(*sizes, count, width, dtype=F64)
        if states == "zero":
            state[is_init.squeeze(-1)] = 0
        if states != "absent":
            values[name] = state
    return TensorDict(values, sizes)


def fresh(tensor: Tensor) -> Tensor:
    """Clones to contiguous strides: those that TorchRL gives differ by its path."""
    return tensor.clone(memory_format=torch.contiguous_format)


def results(module: Any, data: Any, recurrent: bool) -> tuple[Tensor, ...]:
    """All that the module writes, and the gradients of the input, first states and weights."""
    data = data.clone()
    leaves = [data["x"].requires_grad_(), *module.parameters()]
    with modules.set_recurrent_mode(recurrent):
        module(data)
    outputs = [data["y"], *(data["next", name] for name in HIDDEN)]
    loss = sum((out.square() * (k + 1)).sum() for k, out in enumerate(outputs))
    grads = torch.autograd.grad(loss, leaves)
    return tuple(map(fresh, (*outputs, *grads)))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("states", ["absent", "zero", "kept"])
@pytest.mark.parametrize("sizes", [(9,), (4, 9), (2, 3, 7), (5, 1)], ids=str)
@pytest.mark.parametrize("starts", [0.0, 0.3, 1.0])
def test_recurrent_mode(
    options: dict[str, Any], states: str, sizes: tuple[int, ...], starts: float
) -> None:
    ours, theirs = twins(**options)
    data = data_for(theirs, sizes, starts, states)
    assert_same(results(ours, data, True), results(theirs, data, True))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("states", ["absent", "kept"])
@pytest.mark.parametrize("sizes", [(), (4,), (2, 3)], ids=str)
def test_step_mode(options: dict[str, Any], states: str, sizes: tuple[int, ...]) -> None:
    if "proj_size" in options and states == "kept":
        pytest.skip("LSTMModule itself raises")
    ours, theirs = twins(**options)
    data = data_for(theirs, sizes, 0.5, states)
    assert_same(results(ours, data, False), results(theirs, data, False))


def test_resets_go_to_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the states allow it no batch is split; else, or with hooks, TorchRL splits."""
    ours, theirs = twins()
    asked: list[Any] = []
    run = FusedLSTMModule._every_state
    monkeypatch.setattr(
        FusedLSTMModule, "_every_state", lambda *args: asked.append(args[3]) or run(*args)
    )
    data = data_for(theirs, (4, 9), 0.3, "zero")
    expected = results(theirs, data, True)
    assert_same(results(ours, data, True), expected)
    (mask,) = asked
    assert torch.equal(mask[:, 1:], data["is_init"][:, 1:, 0])
    assert not mask[:, 0].any()
    results(ours, data_for(theirs, (4, 9), 0.3, "kept"), True)
    with torch.no_grad(), modules.set_recurrent_mode(True):
        changed = data.clone()
        changed[HIDDEN[0]].requires_grad_()
        ours(changed)  # without gradients they make no difference
    assert len(asked) == 2
    calls: list[Any] = []
    ours.lstm.register_forward_hook(lambda *args: calls.append(args))
    assert_same(results(ours, data, True), expected)
    assert (len(asked), len(calls)) == (2, 1)


def test_states_that_need_gradients_get_them() -> None:
    grads = []
    for module in twins(num_layers=2):
        data = data_for(module, (3, 8), 0.4, "zero")
        states = [data[name].requires_grad_() for name in HIDDEN]
        with modules.set_recurrent_mode(True):
            loss = module(data)["y"].square().sum()
        grads.append(torch.autograd.grad(loss, states))
    assert_same(*grads)


def test_construction_copies_and_the_way_back() -> None:
    torch.manual_seed(0)
    made = FusedLSTMModule(D, H, in_key="x", out_key="y").to(F64)
    ours, theirs = twins()
    assert type(made.lstm) is type(ours.lstm) is FusedLSTM
    given = FusedLSTMModule(lstm=made.lstm, in_key="x", out_key="y")
    assert given.lstm is made.lstm
    data = data_for(theirs, (4, 9), 0.3, "zero")
    expected = results(theirs, data, True)
    for module in (made, given, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(module) is FusedLSTMModule
        assert_same(results(module, data, True), expected)
    made.lstm = made.lstm.to_torch()
    assert_same(results(made, data, True), expected)
    back = lstm_fused.revert(ours)
    assert type(back) is modules.LSTMModule
    assert type(back.lstm) is nn.LSTM
    assert_same(results(back, data, True), expected)
    with pytest.raises(ValueError, match="python_based must be False: a FusedLSTMModule runs"):
        FusedLSTMModule(D, H, in_key="x", out_key="y", python_based=True)
    with pytest.raises(ValueError, match="batch_first=True"):
        FusedLSTMModule(lstm=FusedLSTM(D, H), in_key="x", out_key="y")


class OwnModule(modules.LSTMModule):  # type: ignore[misc]
    pass


def test_convert_of_policies() -> None:
    policy = nn.Sequential(twins()[1], OwnModule(D, H, in_key="x", out_key="z"))
    with pytest.warns(UserWarning, match="derive that from lstm_fused.torchrl.FusedLSTMModule"):
        _, report = lstm_fused.convert(policy, return_report=True)
    assert [type(part) for part in policy] == [FusedLSTMModule, OwnModule]
    assert type(policy[1].lstm) is nn.LSTM
    assert [(c.path, c.after) for c in report.converted] == [
        ("0.lstm", "FusedLSTM"),
        ("0", "FusedLSTMModule"),
    ]


def test_python_based_modules() -> None:
    torch.manual_seed(0)
    theirs = modules.LSTMModule(D, H, in_key="x", out_key="y", python_based=True).to(F64)
    data = data_for(theirs, (4, 9), 0.3, "zero")
    expected = results(theirs, data, True)
    with pytest.warns(UserWarning, match=r"lstm \(LSTM\): it is TorchRL's LSTM in Python: call"):
        lstm_fused.convert(theirs)
    assert_same(results(theirs, data, True), expected)
    ours = lstm_fused.convert(theirs.make_cudnn_based())
    for module in (ours, ours.make_cudnn_based(), ours.make_python_based().make_cudnn_based()):
        assert (type(module), type(module.lstm)) == (FusedLSTMModule, FusedLSTM)
        assert_same(results(module, data, True), expected)
    assert_same(results(ours.make_python_based(), data, True), expected)


def test_dispatch_and_compile() -> None:
    ours, theirs = twins()
    data = data_for(theirs, (4, 9), 0.3, "zero")
    with modules.set_recurrent_mode(True), torch.no_grad():
        keys = ["x", *HIDDEN, "is_init"]
        arguments = {key: data[key] for key in keys}
        assert_same(*(tuple(map(fresh, m(**arguments))) for m in (ours, theirs)))
        compiled: Any = torch.compile(ours, backend="eager")
        assert_same(*(fresh(m(data.clone())["y"]) for m in (compiled, theirs)))
