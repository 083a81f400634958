# SPDX-License-Identifier: BSD-3-Clause
"""PyTorch's own samples for LSTM and LSTMCell (its ModuleInfo database), run on our modules."""

import copy
import io
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from kit.twins import assert_same
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.testing._internal.common_modules import ModuleErrorEnum, ModuleInfo, module_db

from lstm_fused import FusedLSTM, FusedLSTMCell

OURS: dict[type[nn.Module], type[nn.Module]] = {nn.LSTM: FusedLSTM, nn.LSTMCell: FusedLSTMCell}
INFOS: list[Any] = [info for info in module_db if info.module_cls in OURS]

infos = pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
modes = pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


def tensors_of(tree: Any) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(tree) if isinstance(t, Tensor)]


def samples(
    info: Any, dtype: torch.dtype, training: bool
) -> Iterator[tuple[nn.Module, nn.Module, Any]]:
    """Our module and torch's, of equal parameters, and the sample that they were made from."""
    for sample in info.module_inputs_func(
        info, device="cpu", dtype=dtype, requires_grad=True, training=training
    ):
        made = sample.constructor_input
        options = {**made.kwargs, "dtype": dtype}
        with torch.random.fork_rng():
            ours = OURS[info.module_cls](*made.args, **options).train(training)
        with torch.random.fork_rng():
            theirs = info.module_cls(*made.args, **options).train(training)
        yield ours, theirs, sample


def call(module: nn.Module, sample: Any) -> Any:
    given = sample.forward_input
    with torch.random.fork_rng():
        return module(*given.args, **given.kwargs)


def test_database_has_samples() -> None:
    assert {info.module_cls for info in INFOS} == set(OURS)
    assert all(isinstance(info, ModuleInfo) for info in INFOS)
    counts = {info.name: len(list(samples(info, torch.float32, training=False))) for info in INFOS}
    assert counts["nn.LSTM"] >= 32
    assert counts["nn.LSTMCell"] >= 2


@infos
@modes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_forward_is_that_of_the_reference_function(
    info: Any, training: bool, dtype: torch.dtype
) -> None:
    assert dtype in info.dtypes
    for ours, theirs, sample in samples(info, dtype, training):
        out = call(ours, sample)
        given = sample.forward_input
        assert_same(out, call(theirs, sample))
        assert sample.reference_fn is not None
        assert_same(out, sample.reference_fn(ours, *given.args, **given.kwargs))


@infos
@modes
def test_gradients(info: Any, training: bool) -> None:
    for ours, theirs, sample in samples(info, torch.float64, training):
        leaves = tensors_of((sample.forward_input.args, sample.forward_input.kwargs))
        found = []
        for module in (ours, theirs):
            outputs = tensors_of(call(module, sample))
            seeds = [torch.full_like(out, 0.5) for out in outputs]
            inputs = [*leaves, *module.parameters()]
            found.append(torch.autograd.grad(outputs, inputs, seeds))
        for mine, expected in zip(*found, strict=True):
            assert_same(mine, expected)


@infos
def test_gradcheck_and_gradgradcheck(info: Any) -> None:
    """As TestModule.test_grad and test_gradgrad, in their fast mode."""
    assert info.supports_gradgrad
    for ours, _, sample in samples(info, torch.float64, training=True):
        given = sample.forward_input
        leaves, spec = torch.utils._pytree.tree_flatten((given.args, given.kwargs))
        names = [name for name, _ in ours.named_parameters()]

        def run(*values: Tensor, ours: Any = ours, spec: Any = spec, names: Any = names) -> Any:
            args, kwargs = torch.utils._pytree.tree_unflatten(values[: spec.num_leaves], spec)
            weights = dict(zip(names, values[spec.num_leaves :], strict=True))
            out = torch.func.functional_call(ours, weights, args, kwargs)
            return tuple(tensors_of(out))

        inputs = (*leaves, *ours.parameters())
        assert gradcheck(run, inputs, fast_mode=True)
        assert gradgradcheck(run, inputs, fast_mode=True)


@infos
@modes
def test_state_dict_pickle_and_repr(info: Any, training: bool) -> None:
    for ours, theirs, sample in samples(info, torch.float32, training):
        out = call(ours, sample)
        assert repr(ours) == "Fused" + repr(theirs)
        assert not any(theirs.load_state_dict(ours.state_dict()))
        assert not any(ours.load_state_dict(theirs.state_dict()))
        file = io.BytesIO()
        torch.save(ours, file)
        file.seek(0)
        for twin in (
            pickle.loads(pickle.dumps(ours)),
            torch.load(file, weights_only=False),
            copy.deepcopy(ours),
        ):
            assert twin.training == training
            for mine, bits in zip(tensors_of(call(twin, sample)), tensors_of(out), strict=True):
                assert torch.equal(mine, bits)


@infos
def test_factory_arguments(info: Any) -> None:
    """As TestModule.test_factory_kwargs: device and dtype reach every parameter."""
    for _, _, sample in samples(info, torch.float32, training=True):
        made = sample.constructor_input
        module = OURS[info.module_cls](*made.args, **made.kwargs, device="meta", dtype=torch.half)
        assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", torch.half)}


@infos
@modes
def test_error_samples(info: Any, training: bool) -> None:
    tried = 0
    for sample in info.module_error_inputs_func(
        info, device="cpu", dtype=torch.float32, requires_grad=False, training=training
    ):
        made, given = (
            sample.module_error_input.constructor_input,
            sample.module_error_input.forward_input,
        )
        at_construction = sample.error_on == ModuleErrorEnum.CONSTRUCTION_ERROR
        if at_construction:
            with pytest.raises(sample.error_type, match=sample.error_regex):
                OURS[info.module_cls](*made.args, **made.kwargs)
        else:
            module = OURS[info.module_cls](*made.args, **made.kwargs)
            with pytest.raises(sample.error_type, match=sample.error_regex):
                module(*given.args, **given.kwargs)
        tried += 1
    assert tried >= 3
