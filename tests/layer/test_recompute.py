# SPDX-License-Identifier: BSD-3-Clause
"""recompute=True: no gates are saved, and the backward's are the forward's, bit for bit.

So that every gradient has the bits of the default's, which the tests of parity judge.
"""

import copy
import pickle
from typing import Any

import pytest
import torch
from kit.cases import CORE, PARALLEL, SMALL, WIDE, LayerCase, LayerInputs, make_inputs
from kit.numeric import assert_bitwise_equal, make_module
from kit.ops import PACKED, SOME, backward_arguments, backward_op, forward_arguments, forward_op
from kit.ours import in_dtype, run_ours
from kit.settings import DTYPES, use_threads
from kit.twins import D, H, make_twins
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import lstm_fused
from lstm_fused import FusedLSTM
from lstm_fused.autograd.arguments import LayerTensors, SavedLayer
from lstm_fused.autograd.saved_rows import activated_gates

RAGGED = [case for case in CORE if case.lengths and min(case.lengths) > 0 and case.reset == 0]

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def assert_same_as_saved(inputs: LayerInputs, **options: Any) -> None:
    expected = run_ours(inputs, **options)
    for name, result in run_ours(inputs, recompute=True, **options).items():
        assert_bitwise_equal(result, expected[name])


@pytest.mark.parametrize("case", CORE, ids=str)
@dtypes
def test_bits_are_those_of_saved_gates(case: LayerCase, dtype: torch.dtype, isa: str) -> None:
    assert_same_as_saved(make_inputs(in_dtype(case, dtype)), cell_states=True)


@pytest.mark.parametrize("case", [case for case in WIDE if case not in CORE], ids=str)
@dtypes
def test_bits_of_every_pair_of_options(case: LayerCase, dtype: torch.dtype) -> None:
    assert_same_as_saved(make_inputs(in_dtype(case, dtype)))


@pytest.mark.parametrize("case", RAGGED, ids=str)
@dtypes
def test_bits_of_packed_sequences(case: LayerCase, dtype: torch.dtype, isa: str) -> None:
    inputs = make_inputs(in_dtype(case, dtype))
    assert_same_as_saved(inputs, cell_states=True, packed=True)


@pytest.mark.parametrize("case", PARALLEL, ids=str)
@dtypes
def test_number_of_threads_changes_no_bit(case: LayerCase, dtype: torch.dtype, isa: str) -> None:
    inputs = make_inputs(in_dtype(case, dtype))
    expected = run_ours(inputs, recompute=True)
    for threads in (2, 3):
        with use_threads(threads):
            results = run_ours(inputs, recompute=True)
        for name, bits in expected.items():
            if "bias" not in name:  # sums of torch's, whose order is its own
                assert_bitwise_equal(results[name], bits)


def saved_bytes(module: FusedLSTM, x: Tensor) -> int:
    """Bytes of the tensors that a training step keeps for its backward, each memory once."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(x)
    return sum(kept.values())


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"proj_size": 2}], ids=str)
@dtypes
def test_gates_are_not_saved(options: dict[str, Any], dtype: torch.dtype) -> None:
    steps, rows = 7, 3
    x = torch.randn(steps, rows, D, dtype=dtype)
    module = FusedLSTM(D, H, dtype=dtype, **options)
    with_gates = saved_bytes(module, x)
    module.recompute = True
    directions = 2 if module.bidirectional else 1
    gates = directions * steps * rows * 4 * H * x.element_size()
    assert with_gates - saved_bytes(module, x) == gates


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_derivatives_of_first_and_second_order(case: LayerCase) -> None:
    inputs = make_inputs(case)
    module = make_module(inputs, FusedLSTM)
    module.recompute = True

    def run(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        hx, weights = (rest[:2], rest[2:]) if case.hx else (None, rest)
        named = dict(zip(inputs.weights, weights, strict=True))
        masks = {"lengths": inputs.lengths, "reset_mask": inputs.reset_mask}
        options = {**masks, "return_cell_states": True}
        y, hidden, cells = torch.func.functional_call(module, named, (x, hx), options)
        return y, *hidden, cells

    leaves = tuple(leaf.detach().requires_grad_() for leaf in inputs.leaves.values())
    assert gradcheck(run, leaves)
    assert gradgradcheck(run, leaves)


@pytest.mark.parametrize("case", [*SOME, PACKED], ids=str)
def test_opcheck(case: LayerCase) -> None:
    packed = case is PACKED
    forward = forward_arguments(case, packed) | {"recompute": True}
    *_, gates, cells = forward_op(*forward.values())
    assert gates.shape == (0,) and cells.dim() == 3
    utilities = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if packed or not case.lengths:  # else it would compare saved rows that are not written
        utilities.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(forward_op, tuple(forward.values()), test_utils=utilities)
    backward = backward_arguments(case, packed) | {"gates": gates}
    torch.library.opcheck(backward_op, tuple(backward.values()))
    sample_gradients_op = torch.ops.lstm_fused.lstm_sample_gradients.default
    torch.library.opcheck(sample_gradients_op, (*list(backward.values())[:-1], 1))


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "proj_size": 2}])
@torch._dynamo.config.patch(error_on_recompile=True)  # type: ignore[untyped-decorator]
def test_compile_makes_one_graph(options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    module, _ = make_twins(**options)
    module.recompute = True
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for steps, rows in ((11, 7), (29, 17)):
        x = torch.randn(steps, rows, D, dtype=torch.float64, requires_grad=True)
        masks = {
            "lengths": torch.arange(rows) % steps + 1,
            "reset_mask": torch.rand(steps, rows) < 0.3,
        }
        results = []
        for function in (compiled, module):
            y, hidden = function(x, **masks)
            loss = y.pow(2).sum() + hidden[1].sum()
            results.append([y, *torch.autograd.grad(loss, [x, *module.parameters()])])
        for mine, bits in zip(*results, strict=True):
            assert_bitwise_equal(mine, bits)


def test_checkpoint() -> None:
    module, _ = make_twins()
    module.recompute = True
    results = []
    for run in (module, lambda x: checkpoint(module, x, use_reentrant=False)):
        x = torch.ones(4, 2, D, dtype=torch.float64, requires_grad=True)
        results.append(torch.autograd.grad(run(x)[0].square().sum(), [x, *module.parameters()]))
    for mine, bits in zip(*results, strict=True):
        assert_bitwise_equal(mine, bits)


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "proj_size": 2}], ids=str)
def test_transforms(options: dict[str, Any]) -> None:
    """Gradients of each sample, of an ensemble, and a Jacobian, whose forward is not mapped."""
    module, _ = make_twins(**options)
    own = {name: p.detach() for name, p in module.named_parameters()}
    ensemble = {name: torch.stack([p, 2 * p]) for name, p in own.items()}
    xs = torch.randn(2, 4, 3, D, dtype=torch.float64)
    lengths = torch.tensor([4, 0, 2])

    def run(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        y, _ = torch.func.functional_call(module, parameters, (x,), {"lengths": lengths})
        return y  # type: ignore[no-any-return]

    gradient = torch.func.grad(lambda p, x: run(p, x).square().sum(), argnums=(0, 1))
    results = []
    for module.recompute in (False, True):
        results.append(
            torch.utils._pytree.tree_leaves(
                [
                    torch.vmap(gradient, (None, 0))(own, xs),
                    torch.vmap(gradient)(ensemble, xs),
                    torch.func.jacrev(run, argnums=(0, 1))(own, xs[0]),
                    torch.func.jvp(lambda x: run(own, x), (xs[0],), (xs[1],)),
                ]
            )
        )
    for mine, bits in zip(*reversed(results), strict=True):
        assert_bitwise_equal(mine, bits)


def test_functional_form_and_layers() -> None:
    x = torch.randn(5, 2, D, requires_grad=True)
    module = FusedLSTM(D, H, num_layers=2, recompute=True)
    (expected,) = torch.autograd.grad(module(x)[0].sum(), x)
    hx = (torch.zeros(2, 2, H), torch.zeros(2, 2, H))
    y, *_ = lstm_fused.functional.lstm(
        x, hx, list(module.parameters()), num_layers=2, recompute=True
    )
    assert_bitwise_equal(torch.autograd.grad(y.sum(), x)[0], expected)


def test_gates_for_those_who_need_them_all() -> None:
    forward = forward_arguments(SOME[3])
    tensors = [forward[name] for name in LayerTensors._fields]

    def saved(recompute: bool) -> SavedLayer:
        y, _, _, _, gates, cells = forward_op(*forward.values(), recompute)
        return SavedLayer(*tensors, y, gates, cells)

    gates = saved(False).gates
    assert activated_gates(saved(False), forward["weights"]).shape == gates.shape
    assert_bitwise_equal(activated_gates(saved(False), forward["weights"]), gates)
    assert saved(True).gates.numel() == 0
    assert_bitwise_equal(activated_gates(saved(True), forward["weights"]), gates)


def test_gates_of_another_shape_are_refused() -> None:
    arguments = backward_arguments(SOME[0])
    for gates in (torch.zeros(1), torch.zeros(0, 4)):
        for place in (Tensor.clone, lambda t: t.to("meta")):
            changed = torch.utils._pytree.tree_map_only(Tensor, place, arguments | {"gates": gates})
            with pytest.raises(RuntimeError, match="gates must have shape"):
                backward_op(*changed.values())


def test_recompute_is_a_setting_of_the_module() -> None:
    module = FusedLSTM(D, H, recompute=True)
    assert repr(module) == f"FusedLSTM({D}, {H}, recompute=True)"
    assert repr(FusedLSTM(D, H)) == f"FusedLSTM({D}, {H})"
    assert module.state_dict().keys() == nn.LSTM(D, H).state_dict().keys()
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert copied.recompute is True
    assert "recompute" not in vars(module.to_torch())
    assert FusedLSTM.from_torch(module.to_torch()).recompute is False
    assert lstm_fused.convert(nn.Sequential(module))[0] is module
    converted = lstm_fused.convert(nn.LSTM(D, H))
    assert converted.recompute is False
    x = torch.zeros(4, 2, D)
    assert "rebuilds the gates" not in lstm_fused.explain(converted, x)
    converted.recompute = True
    assert "rebuilds the gates" in lstm_fused.explain(converted, x)


def test_torchs_kernels_do_not_take_it() -> None:
    message = 'recompute needs backend="auto", got'
    with pytest.raises(ValueError, match=message):
        FusedLSTM(D, H, backend="cudnn", recompute=True)
    module = FusedLSTM(D, H, backend="cudnn")
    module.recompute = True
    with pytest.raises(ValueError, match=message):
        module(torch.zeros(4, 2, D))
