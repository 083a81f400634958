# SPDX-License-Identifier: BSD-3-Clause
"""`function_apply.apply` against torch's own Function.apply, which it stands in for: equal bits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kit.numeric import assert_bitwise_equal
from kit.twins import D, make_twins
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from lstm_fused import FusedLSTM, FusedLSTMFunction
from lstm_fused._torch import private
from lstm_fused.autograd import function_apply, functorch_function

Transform = Callable[[Any, dict[str, Tensor], Tensor], Any]

# Transforms of run(parameters, x) -> y, for 3 samples.
TRANSFORMS: dict[str, Transform] = {
    "grad": lambda run, p, x: grad(lambda p: run(p, x[0]).square().sum())(p),
    "grad of grad": lambda run, p, x: grad(
        lambda x: grad(lambda x: run(p, x).square().sum())(x).square().sum()
    )(x[0]),
    "vmap": lambda run, p, x: vmap(run, (None, 0))(p, x),
    "vmap of nothing that is mapped": lambda run, p, x: vmap(lambda scale: run(p, x[0]) * scale)(
        torch.ones(2)
    ),
    "vmap of grad": lambda run, p, x: vmap(
        grad(lambda p, x: run(p, x).square().sum(), argnums=(0, 1)), (None, 0)
    )(p, x),
    "grad of vmap": lambda run, p, x: grad(lambda p: vmap(run, (None, 0))(p, x).square().sum())(p),
    "grad of vmap of grad": lambda run, p, x: grad(
        lambda p: (
            vmap(grad(lambda p, x: run(p, x).square().sum(), argnums=1), (None, 0))(p, x)
            .square()
            .sum()
        )
    )(p),
    "vmap of vmap of grad": lambda run, p, x: vmap(
        vmap(grad(lambda p, x: run(p, x).square().sum()), (None, 0)), (None, 0)
    )(p, torch.stack([x, 2 * x])),
    "vjp": lambda run, p, x: vjp(lambda p: run(p, x[0]), p)[1](torch.ones_like(run(p, x[0]))),
    "jvp": lambda run, p, x: jvp(lambda x: run(p, x), (x[0],), (x[1],)),
    "jacrev": lambda run, p, x: jacrev(run)(p, x[0]),
    "jacfwd": lambda run, p, x: jacfwd(run, argnums=1)(p, x[0]),
    "hessian": lambda run, p, x: hessian(lambda x: run(p, x).square().sum())(x[0]),
}


def by_torch(function: Any, *arguments: Any) -> Any:
    return function.apply(*arguments)


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("grad_mode", [True, False])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "proj_size": 2}], ids=str)
def test_transforms_are_torchs(
    transform: Transform,
    grad_mode: bool,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, _ = make_twins(**options)
    own = dict(module.named_parameters())
    x = torch.randn(3, 4, 2, D, dtype=torch.float64)

    def run(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(module, parameters, (x,))[0]  # type: ignore[no-any-return]

    results = []
    for patch in (False, True):
        if patch:
            monkeypatch.setattr(functorch_function, "apply", by_torch)
        with torch.set_grad_enabled(grad_mode):
            results.append(torch.utils._pytree.tree_leaves(transform(run, own, x)))
    for mine, theirs in zip(*results, strict=True):
        assert mine.requires_grad == theirs.requires_grad
        assert_bitwise_equal(mine.detach(), theirs.detach())


def test_transforms_of_what_requires_grad_are_differentiable() -> None:
    """The graph below the transforms, for a backward() after them."""
    module = FusedLSTM(D, 3, dtype=torch.float64)
    x = torch.randn(3, 4, 2, D, dtype=torch.float64)
    found = []
    for way in (function_apply.apply, by_torch):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(functorch_function, "apply", way)
            y = vmap(lambda x: module(x)[0])(x)
            gradient = vmap(grad(lambda x: module(x)[0].square().sum()))(x)
            found.append(
                torch.autograd.grad(y.sum() + gradient.square().sum(), list(module.parameters()))
            )
    for mine, theirs in zip(*found, strict=True):
        assert mine.abs().sum() > 0
        assert_bitwise_equal(mine, theirs)


def test_a_pullback_outlives_its_transform() -> None:
    """What it holds are tensors of a transform that has ended."""
    module = FusedLSTM(D, 3, dtype=torch.float64)
    x = torch.randn(4, 2, D, dtype=torch.float64, requires_grad=True)
    y, pullback = vjp(lambda x: module(x)[0], x)
    (gradient,) = pullback(torch.ones_like(y))
    (expected,) = torch.autograd.grad(module(x)[0].sum(), x, create_graph=True)
    torch.testing.assert_close(gradient, expected)
    weight = module.weight_hh_l0
    found, truth = (torch.autograd.grad(g.square().sum(), weight) for g in (gradient, expected))
    torch.testing.assert_close(found, truth)


def test_tensors_that_overload_functions_see_the_call() -> None:
    seen = []

    class Watched(Tensor):
        @classmethod
        def __torch_function__(
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(str(func))
            return super().__torch_function__(func, types, args, kwargs or {})

    x = torch.randn(3, 2, D).as_subclass(Watched)
    zero = torch.zeros(1, 2, 4)
    weights = FusedLSTM(D, 4).requires_grad_(False)._flat_weights

    def run(scale: Tensor) -> Tensor:
        none = (None, None, None)
        y: Tensor = function_apply.apply(
            FusedLSTMFunction, x, zero, zero, *none, False, False, *weights
        )[0]
        return y * scale

    vmap(run)(torch.ones(2))
    assert "custom_function_call" in seen


def test_without_torchs_private_names(monkeypatch: pytest.MonkeyPatch) -> None:
    module, _ = make_twins()
    x = torch.randn(3, 4, 2, D, dtype=torch.float64)

    def gradients() -> Tensor:
        result: Tensor = vmap(grad(lambda x: module(x)[0].square().sum()))(x)
        return result

    expected = gradients()
    monkeypatch.setattr(function_apply, "HAS_TRANSFORMS", False)
    monkeypatch.delattr(function_apply, "current_interpreter")
    assert_bitwise_equal(gradients(), expected)


def test_torch_has_its_private_names() -> None:
    """Where one is missing, the fallback hides it: the same results, only slower."""
    assert private.HAS_TRANSFORMS
    assert private.all_interpreters is not None
