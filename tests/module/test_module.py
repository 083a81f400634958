# SPDX-License-Identifier: BSD-3-Clause
"""FusedLSTM in the place of nn.LSTM: construction, state, results, and what users do to modules."""

import copy
import inspect
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kit.numeric import assert_bitwise_equal
from kit.settings import DTYPES
from kit.twins import D, H, assert_same, make_twins, random_hx
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from lstm_fused import FusedLSTM

OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"bias": False},
    {"batch_first": True},
    {"num_layers": 2, "bidirectional": True},
    {"num_layers": 3, "proj_size": 2, "batch_first": True},
    {"num_layers": 2, "dropout": 0.5, "bidirectional": True, "proj_size": 4, "bias": False},
)
options_of_modules = pytest.mark.parametrize("options", OPTIONS, ids=str)
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


# Construction.


def test_signature_is_that_of_nn_lstm() -> None:
    theirs = list(inspect.signature(nn.RNNBase.__init__).parameters.values())
    ours = list(inspect.signature(FusedLSTM.__init__).parameters.values())
    assert [(p.name, p.default) for p in theirs if p.name != "mode"] == [
        (p.name, p.default) for p in ours if p.kind is not p.KEYWORD_ONLY
    ]
    forward = list(inspect.signature(FusedLSTM.forward).parameters.values())
    assert [p.name for p in forward if p.kind is not p.KEYWORD_ONLY] == ["self", "input", "hx"]


def test_module_is_no_subclass_of_nn_lstm() -> None:
    assert not issubclass(FusedLSTM, nn.LSTM)


@options_of_modules
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_seed_gives_the_same_parameters(options: dict[str, Any], dtype: torch.dtype) -> None:
    ours, theirs = make_twins(dtype, **options)
    after = torch.rand(1)
    make_twins(dtype, **options)
    assert torch.equal(torch.rand(1), after), "as many random numbers are drawn"
    pairs = zip(ours.named_parameters(), theirs.named_parameters(), strict=True)
    for (name, mine), (expected_name, expected) in pairs:
        assert name == expected_name
        assert type(mine) is nn.Parameter
        assert mine.requires_grad
        assert_bitwise_equal(mine, expected)
    torch.manual_seed(1)
    ours.reset_parameters()
    torch.manual_seed(1)
    theirs.reset_parameters()
    for mine, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_bitwise_equal(mine, expected)


@options_of_modules
def test_repr_and_attributes_are_those_of_nn_lstm(options: dict[str, Any]) -> None:
    ours, theirs = make_twins(**options)
    assert repr(ours) == repr(theirs).replace("LSTM(", "FusedLSTM(")
    for name in [*nn.LSTM.__constants__, "_flat_weights_names", "_all_weights", "training"]:
        assert getattr(ours, name) == getattr(theirs, name), name
    flat, by_layer = ours._flat_weights, ours.all_weights
    assert [id(w) for w in flat] == [id(p) for p in ours.parameters()]
    assert [id(w) for layer in by_layer for w in layer] == [id(w) for w in flat]
    assert [len(layer) for layer in by_layer] == [len(layer) for layer in theirs.all_weights]
    assert ours.extra_repr() == theirs.extra_repr()
    public = {name for name in dir(theirs) if not name.startswith("_")}
    assert public <= set(dir(ours))


def test_constructor_warns_as_nn_lstm() -> None:
    for module_type in (nn.LSTM, FusedLSTM):
        with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
            module_type(D, H, dropout=0.5)


def test_construction_on_meta_and_materialisation() -> None:
    ours = FusedLSTM(D, H, num_layers=2, device="meta")
    assert all(parameter.is_meta for parameter in ours.parameters())
    y, (h_n, c_n) = ours(torch.empty(4, 2, D, device="meta"))
    assert y.is_meta
    assert (y.shape, h_n.shape, c_n.shape) == ((4, 2, H), (2, 2, H), (2, 2, H))
    ours.to_empty(device="cpu").reset_parameters()
    assert ours(torch.randn(4, 2, D))[0].isfinite().all()


# State.


@options_of_modules
def test_state_dict_goes_both_ways(options: dict[str, Any]) -> None:
    ours, theirs = make_twins(**options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for parameter in ours.parameters():
        parameter.data.mul_(0.5)
    x = torch.randn(4, 4, D, dtype=torch.float64)
    for source, target in ((ours, theirs), (theirs, ours)):
        for parameter in source.parameters():
            parameter.data.add_(0.25)
        file = io.BytesIO()
        torch.save(source.state_dict(), file)
        file.seek(0)
        assert not any(target.load_state_dict(torch.load(file, weights_only=True)))
        assert_same(ours.eval()(x), theirs.eval()(x))


def test_state_dict_that_does_not_fit_is_refused_as_by_nn_lstm() -> None:
    ours, theirs = make_twins()
    state = nn.LSTM(D, H + 1, num_layers=2).state_dict()
    messages = []
    for module in (ours, theirs):
        with pytest.raises(RuntimeError) as caught:
            module.load_state_dict(state)
        messages.append(str(caught.value))
    assert messages[0] == messages[1].replace("for LSTM", "for FusedLSTM")


def pickled(module: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(module))


def saved(module: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@options_of_modules
@pytest.mark.parametrize("converted", [False, True], ids=["constructed", "from_torch"])
@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved])
def test_copies_are_equal_and_independent(
    options: dict[str, Any], converted: bool, copied: Callable[[nn.Module], nn.Module]
) -> None:
    ours, theirs = make_twins(**options)
    if converted:
        ours = FusedLSTM.from_torch(theirs)
    ours.eval()
    twin = copied(ours)
    assert type(twin) is FusedLSTM
    assert repr(twin) == repr(ours)
    assert not twin.training
    x = torch.randn(4, 4, D, dtype=torch.float64)
    before = ours(x)[0]
    assert_bitwise_equal(twin(x)[0], before)
    for parameter in twin.parameters():
        parameter.data.zero_()
    assert not twin(x)[0].any()
    assert_bitwise_equal(ours(x)[0], before)
    assert repr(pickle.loads(pickle.dumps(ours.to_torch()))) == repr(theirs)


def test_state_of_old_pickles() -> None:
    """As nn.LSTM's: before PyTorch 1.8 there was no proj_size, before 0.4 no _all_weights."""
    ours: Any = make_twins(num_layers=2, bidirectional=True)[0]
    state = ours.__getstate__()
    old = {k: v for k, v in state.items() if k not in ("proj_size", "_all_weights")}
    old["all_weights"] = [[getattr(ours, name) for name in names] for names in ours._all_weights]
    restored: Any = FusedLSTM.__new__(FusedLSTM)
    restored.__setstate__(old)
    assert restored._flat_weights_names == ours._flat_weights_names
    assert repr(restored) == repr(ours)
    x = torch.randn(4, 4, D, dtype=torch.float64)
    assert_bitwise_equal(restored(x)[0], ours(x)[0])


@options_of_modules
def test_flatten_parameters_does_nothing(options: dict[str, Any]) -> None:
    ours, _ = make_twins(**options)
    before = [(id(p), p.data_ptr()) for p in ours.parameters()]
    ours.flatten_parameters()
    assert [(id(p), p.data_ptr()) for p in ours.parameters()] == before


# Results.


@options_of_modules
@pytest.mark.parametrize("batch", [None, 0, 1, 4], ids="N={}".format)
@pytest.mark.parametrize("with_hx", [False, True])
def test_results_of_tensors(options: dict[str, Any], batch: int | None, with_hx: bool) -> None:
    ours, theirs = make_twins(**options)
    sizes = [6] if batch is None else [batch, 6] if ours.batch_first else [6, batch]
    x = torch.randn(*sizes, D, dtype=torch.float64)
    hx = random_hx(ours, batch) if with_hx else None
    torch.manual_seed(0)
    expected = theirs(x, hx)
    torch.manual_seed(0)
    assert_same(ours(x, hx), expected)
    assert_same(ours.eval()(input=x, hx=hx), theirs.eval()(input=x, hx=hx))


@options_of_modules
@pytest.mark.parametrize("lengths", [(6, 4, 4, 1), (1, 6, 4, 4), (6, 6, 6, 6)], ids=str)
@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("with_hx", [False, True])
def test_results_of_packed_sequences(
    options: dict[str, Any], lengths: tuple[int, ...], enforce_sorted: bool, with_hx: bool
) -> None:
    ours, theirs = make_twins(**options)
    if enforce_sorted:
        lengths = tuple(sorted(lengths, reverse=True))
    x = torch.randn(6, 4, D, dtype=torch.float64)
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=enforce_sorted)
    hx = random_hx(ours, 4) if with_hx else None
    torch.manual_seed(0)
    expected = theirs(packed, hx)
    torch.manual_seed(0)
    assert_same(ours(packed, hx), expected)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("packed", [False, True], ids=["tensor", "packed"])
def test_dropout_is_nn_lstms_under_one_seed(probability: float, packed: bool) -> None:
    ours, theirs = make_twins(num_layers=3, dropout=probability, bidirectional=True)
    x: Any = torch.randn(6, 4, D, dtype=torch.float64)
    if packed:
        x = pack_padded_sequence(x, torch.tensor([2, 6, 1, 5]), enforce_sorted=False)
    for seed in range(3):
        torch.manual_seed(seed)
        expected = theirs(x)
        after = torch.rand(1)
        torch.manual_seed(seed)
        assert_same(ours(x), expected)
        assert torch.equal(torch.rand(1), after), "as many random numbers are drawn"
    if probability == 0.3:
        assert not torch.equal(ours(x)[1][0], ours(x)[1][0]), "each call draws anew"
    assert_same(ours.eval()(x), theirs.eval()(x))


@options_of_modules
def test_forms_of_the_extra_results(options: dict[str, Any]) -> None:
    ours, _ = make_twins(**options)
    ours.eval()
    dirs = 2 if ours.bidirectional else 1
    x = torch.randn(4, 4, D, dtype=torch.float64)
    y, hidden, cells = ours(x, return_cell_states=True)
    assert_bitwise_equal(y, ours(x)[0])
    assert isinstance(hidden, tuple)
    assert cells.shape == (4, 4, dirs * H)
    assert cells.stride()[-1] == 1

    # The last cell state of the forward direction is c_n, and so is the first of the reverse one.
    steps = cells.transpose(0, 1) if ours.batch_first else cells
    assert_bitwise_equal(steps[-1, :, :H], hidden[1][-dirs])
    if dirs == 2:
        assert_bitwise_equal(steps[0, :, H:], hidden[1][-1])

    # Unbatched, as a batch of one.
    reset_mask = torch.tensor([False, True, False, True])
    one = x[0] if ours.batch_first else x[:, 0]
    batch_dim = 0 if ours.batch_first else 1
    y_1, hidden_1, cells_1 = ours(one, reset_mask=reset_mask, return_cell_states=True)
    y_2, hidden_2, cells_2 = ours(
        one.unsqueeze(batch_dim),
        reset_mask=reset_mask.unsqueeze(batch_dim),
        return_cell_states=True,
    )
    for a, b, dim in ((y_1, y_2, batch_dim), (cells_1, cells_2, batch_dim)):
        assert_bitwise_equal(a, b.squeeze(dim))
    for a, b in zip(hidden_1, hidden_2, strict=True):
        assert_bitwise_equal(a, b.squeeze(1))

    # Packed, in the packed order.
    packed = pack_padded_sequence(x, torch.tensor([2, 4, 1, 4]), enforce_sorted=False)
    y_packed, _, cells_packed = ours(packed, return_cell_states=True)
    assert isinstance(cells_packed, PackedSequence)
    assert_same(tuple(cells_packed)[1:], tuple(y_packed)[1:])
    assert cells_packed.data.shape == (11, dirs * H)


# What users do to modules.


def changed_by_data(module: Any) -> None:
    module.weight_hh_l0.data.mul_(2)


def changed_by_numpy(module: Any) -> None:
    module.weight_hh_l0.detach().numpy()[:] *= 2


def replaced(module: Any) -> None:
    module.weight_hh_l0 = nn.Parameter(module.weight_hh_l0.detach() * 2)


def given_new_data(module: Any) -> None:
    module.weight_hh_l0.data = module.weight_hh_l0.data * 2


def loaded(module: Any) -> None:
    state = module.state_dict()
    module.load_state_dict({**state, "weight_hh_l0": state["weight_hh_l0"] * 2})


def assigned(module: Any) -> None:
    state = module.state_dict()
    module.load_state_dict({**state, "weight_hh_l0": state["weight_hh_l0"] * 2}, assign=True)


def weight_normed(module: Any) -> None:
    weight_norm(module, "weight_hh_l0")
    module.parametrizations.weight_hh_l0.original0.data.mul_(2)


def old_weight_normed(module: Any) -> None:
    torch.nn.utils.weight_norm(module, "weight_hh_l0")
    module.weight_hh_l0_g.data.mul_(2)


def pruned(module: Any) -> None:
    prune.l1_unstructured(module, "weight_hh_l0", 0.5)  # type: ignore[no-untyped-call]


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def parametrized(module: Any) -> None:
    parametrize.register_parametrization(module, "weight_hh_l0", Doubled())


def cast(module: Any) -> None:
    module.to(torch.bfloat16).double()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "change",
    [
        *(changed_by_data, changed_by_numpy, replaced, given_new_data, loaded, assigned, cast),
        *(weight_normed, parametrized, old_weight_normed, pruned),
    ],
)
def test_changes_of_weights_are_seen_at_once(change: Callable[[nn.Module], None]) -> None:
    ours, theirs = make_twins(num_layers=2, bidirectional=True)
    x = torch.randn(6, 4, D, dtype=torch.float64)
    before = ours(x)[0]
    for module in (ours, theirs):
        change(module)
    for training in (True, False):
        assert_same(ours.train(training)(x), theirs.train(training)(x))
    assert not torch.equal(ours(x)[0], before)
    ours(x)[0].sum().backward()
    theirs(x)[0].sum().backward()
    for (name, mine), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert mine.grad is not None, name
        assert expected.grad is not None
        assert_same(mine.grad, expected.grad)
    if change not in (old_weight_normed, pruned):  # torch refuses to copy these modules
        assert_same(copy.deepcopy(ours)(x), theirs(x))


def test_functional_call_takes_the_given_weights() -> None:
    ours, theirs = make_twins(num_layers=2)
    x = torch.randn(6, 4, D, dtype=torch.float64)
    before = ours(x)[0]
    weights = {name: 2 * p.detach() for name, p in ours.named_parameters()}
    assert_same(
        torch.func.functional_call(ours, weights, (x,)),
        torch.func.functional_call(theirs, weights, (x,)),
    )
    assert_bitwise_equal(ours(x)[0], before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_module_cast_to_a_dtype_computes_in_it(dtype: torch.dtype) -> None:
    ours, theirs = make_twins(num_layers=2)
    assert ours.to(dtype) is ours
    theirs.to(dtype)
    y, (h_n, c_n) = ours(torch.randn(4, 2, D, dtype=dtype))
    assert {y.dtype, h_n.dtype, c_n.dtype} == {dtype}
    state = OrderedDict((name, w.dtype) for name, w in ours.state_dict().items())
    assert state == OrderedDict((name, w.dtype) for name, w in theirs.state_dict().items())
