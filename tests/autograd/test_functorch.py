# SPDX-License-Identifier: BSD-3-Clause
"""torch.func's transforms and torch.autograd's batched gradients, against nn.LSTM or a loop."""

from typing import Any

import pytest
import torch
from kit.numeric import assert_within_budget
from kit.twins import make_twins, random_hx
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode

from lstm_fused import FusedLSTM, reference

OPTIONS = pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2, "bidirectional": True}, {"proj_size": 2}], ids=str
)


def close(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def sequence(module: nn.RNNBase, *leading: int) -> Tensor:
    return torch.randn(*leading, module.input_size, dtype=torch.float64)


@OPTIONS
def test_batched_gradients(options: dict[str, Any]) -> None:
    ours, theirs = make_twins(**options)
    x = sequence(ours, 4, 2).requires_grad_()

    def gradients(module: Any) -> Any:
        y, (_, c_n) = module(x)
        grads = torch.randn(
            3, y.numel() + c_n.numel(), generator=torch.Generator().manual_seed(1)
        ).double()
        grad_y, grad_c = grads.split([y.numel(), c_n.numel()], dim=1)
        return torch.autograd.grad(
            [y, c_n],
            [x, *module.parameters()],
            [grad_y.view(3, *y.shape), grad_c.view(3, *c_n.shape)],
            is_grads_batched=True,
        )

    close(gradients(ours), gradients(theirs))


def test_batched_gradients_of_some_inputs() -> None:
    ours, theirs = make_twins()
    for module in (ours, theirs):
        module.weight_hh_l0.requires_grad_(False)
    x = sequence(ours, 4, 2)

    def gradients(module: Any) -> Any:
        y = module(x)[0]
        grads = torch.eye(y.numel(), dtype=y.dtype).view(-1, *y.shape)
        wanted = [p for p in module.parameters() if p.requires_grad]
        return torch.autograd.grad(y, wanted, grads, is_grads_batched=True)

    close(gradients(ours), gradients(theirs))


def test_vectorized_jacobian_and_hessian() -> None:
    ours, theirs = make_twins()
    x = sequence(ours, 3, 2)
    close(jacobian(lambda x: ours(x)[0], x, vectorize=True), jacobian(lambda x: theirs(x)[0], x))
    close(
        hessian(lambda x: ours(x)[0].square().sum(), x, vectorize=True),
        hessian(lambda x: theirs(x)[0].square().sum(), x),
    )


def test_vectorized_jacobian_of_masks_and_packed_sequences() -> None:
    ours, theirs = make_twins()
    x = sequence(ours, 4, 3)
    lengths = torch.tensor([4, 2, 1])
    packed = pack_padded_sequence(x, lengths)

    def of_packed(module: Any) -> Any:
        def run(data: Tensor) -> Tensor:
            y: Tensor = module(PackedSequence(data, packed.batch_sizes))[0].data
            return y

        return run

    close(
        jacobian(of_packed(ours), packed.data, vectorize=True),
        jacobian(of_packed(theirs), packed.data),
    )
    mask = torch.rand(4, 3) < 0.4
    with_masks = lambda x: ours(x, lengths=lengths, reset_mask=mask)[0]  # noqa: E731
    close(jacobian(with_masks, x, vectorize=True), jacobian(with_masks, x))


@OPTIONS
def test_grad_of_grad(options: dict[str, Any]) -> None:
    ours, theirs = make_twins(**options)
    x = sequence(ours, 3, 2)

    def penalty(module: Any) -> Any:
        gradient = torch.func.grad(lambda x: module(x)[0].square().sum())
        return torch.func.grad(lambda x: gradient(x).square().sum())

    def penalty_by_autograd(module: Any) -> Tensor:
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(module(leaf)[0].square().sum(), leaf, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), leaf)[0]

    close(penalty(ours)(x), penalty_by_autograd(theirs))


class CountOps(TorchDispatchMode):
    """Counts the calls of our ops that reach a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "lstm_fused":
            self.calls.append(func._schema.name.split("::")[1])
        return func(*args, **(kwargs or {}))


MASKS = pytest.mark.parametrize(
    "masks", ["dense", "lengths", "reset", "lengths and reset", "packed"]
)
SAMPLES, STEPS, ROWS = 4, 6, 3


def make_call(module: FusedLSTM, masks: str) -> tuple[Any, Any]:
    """A function of one sample, and samples: input, states, and what masks there are."""
    x, (h_0, c_0) = sequence(module, SAMPLES, STEPS, ROWS), random_hx(module, ROWS)
    h_0, c_0 = (torch.randn(SAMPLES, *state.shape, dtype=x.dtype) for state in (h_0, c_0))
    samples = [x, h_0, c_0]
    if masks == "packed":
        packed = pack_padded_sequence(x[0], torch.tensor([6, 4, 1]))
        samples[0] = torch.randn(SAMPLES, *packed.data.shape, dtype=x.dtype)

        def run(parameters: Any, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
            data = PackedSequence(x, packed.batch_sizes)
            y, (h_n, c_n), cells = functional_call(
                module, parameters, (data, (h, c)), {"return_cell_states": True}
            )
            return y.data, h_n, c_n, cells.data

        return run, samples
    names = [name for name in ("lengths", "reset") if name in masks]
    if "lengths" in names:
        samples.append(torch.randint(0, STEPS + 1, (SAMPLES, ROWS)))
    if "reset" in names:
        samples.append(torch.rand(SAMPLES, STEPS, ROWS) < 0.3)

    def run_padded(
        parameters: Any, x: Tensor, h: Tensor, c: Tensor, *given: Tensor
    ) -> tuple[Tensor, ...]:
        keys = {"lengths": "lengths", "reset": "reset_mask"}
        arguments = {keys[name]: mask for name, mask in zip(names, given, strict=True)}
        y, (h_n, c_n), cells = functional_call(
            module, parameters, (x, (h, c)), {"return_cell_states": True, **arguments}
        )
        return y, h_n, c_n, cells

    return run_padded, samples


def loss_of(run: Any) -> Any:
    def loss(parameters: Any, *sample: Tensor) -> Tensor:
        return sum((result.square().sum() for result in run(parameters, *sample)), torch.zeros(()))

    return loss


@OPTIONS
@MASKS
def test_vmap_over_data_is_one_call(options: dict[str, Any], masks: str) -> None:
    module = FusedLSTM(3, 5, dtype=torch.float64, **options).requires_grad_(False)
    run, samples = make_call(module, masks)
    own = dict(module.named_parameters())
    with CountOps() as count:
        found = torch.vmap(run, (None, *[0] * len(samples)))(own, *samples)
    assert count.calls == ["lstm_forward"] * module.num_layers
    for index in range(SAMPLES):
        close([r[index] for r in found], list(run(own, *(s[index] for s in samples))))


@OPTIONS
@MASKS
def test_vmap_over_some_arguments(options: dict[str, Any], masks: str) -> None:
    """The others are the same for all samples, and samples may lie in any dimension."""
    module = FusedLSTM(3, 5, dtype=torch.float64, **options).requires_grad_(False)
    run, samples = make_call(module, masks)
    own = dict(module.named_parameters())
    for mapped in range(len(samples)):
        dims = [0 if k == mapped else None for k in range(len(samples))]
        given = [s if k == mapped else s[0] for k, s in enumerate(samples)]
        found = torch.vmap(run, (None, *dims))(own, *given)
        given[mapped], dims[mapped] = given[mapped].movedim(0, -1), -1  # type: ignore[call-overload]
        close(torch.vmap(run, (None, *dims))(own, *given), found)
        for index in range(SAMPLES):
            one = [s[index] if k == mapped else s[0] for k, s in enumerate(samples)]
            close([r[index] for r in found], list(run(own, *one)))


@OPTIONS
@MASKS
def test_gradients_of_each_sample(options: dict[str, Any], masks: str) -> None:
    module = FusedLSTM(3, 5, dtype=torch.float64, **options)
    run, samples = make_call(module, masks)
    own = {name: p.detach() for name, p in module.named_parameters()}
    gradient = torch.func.grad(loss_of(run), argnums=(0, 1, 2, 3))
    with CountOps() as count:
        found = torch.vmap(gradient, (None, *[0] * len(samples)))(own, *samples)
    layers = module.num_layers
    assert count.calls == ["lstm_forward"] * layers + ["lstm_sample_gradients"] * layers
    for index in range(SAMPLES):
        sample = [s[index] for s in samples]
        mine = torch.utils._pytree.tree_map(lambda g, k=index: g[k], found)
        leaves = [t.clone().requires_grad_() for t in (*own.values(), *sample[:3])]
        outputs = run(dict(zip(own, leaves, strict=False)), *leaves[len(own) :], *sample[3:])
        grads = torch.autograd.grad(sum(r.square().sum() for r in outputs), leaves)
        close([*mine[0].values(), *mine[1:]], list(grads))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gradients_of_each_sample_in_other_dtypes(dtype: torch.dtype) -> None:
    module = FusedLSTM(3, 5, dtype=dtype)
    xs = torch.randn(SAMPLES, STEPS, ROWS, 3, dtype=dtype)
    own = {name: p.detach() for name, p in module.named_parameters()}

    def loss(parameters: Any, x: Tensor) -> Tensor:
        return functional_call(module, parameters, (x,))[0].float().square().sum()  # type: ignore[no-any-return]

    found = torch.vmap(torch.func.grad(loss), (None, 0))(own, xs)
    for index, x in enumerate(xs):
        for name, grad in torch.func.grad(loss)(own, x).items():
            assert found[name].dtype == dtype
            assert_within_budget(name, grad, found[name][index], grad.double(), dtype)


def test_gradient_of_the_gradients_of_each_sample() -> None:
    """Per-sample gradient penalty: what the fast path computes must not lose derivatives."""
    module = FusedLSTM(3, 4, dtype=torch.float64)
    xs = sequence(module, 3, 4, 2)

    def penalty(run: Any, parameters: Any) -> Tensor:
        per_sample = torch.func.grad(lambda p, x: run(p, x).square().sum())
        grads = torch.vmap(per_sample, (None, 0))(parameters, xs)
        return sum((g.pow(3).sum() for g in grads.values()), torch.zeros(()))

    def ours(p: Any, x: Tensor) -> Tensor:
        return functional_call(module, p, (x,))[0]  # type: ignore[no-any-return]

    def plain(p: Any, x: Tensor) -> Tensor:
        zero = x.new_zeros(1, x.shape[1], 4)
        return reference.lstm_layer(x, zero, zero, list(p.values()))[0]

    own = {name: p.detach() for name, p in module.named_parameters()}
    expected = torch.func.grad(lambda p: penalty(plain, p))(own)
    close(torch.func.grad(lambda p: penalty(ours, p))(own), expected)
    leaves = {name: p.clone().requires_grad_() for name, p in own.items()}
    penalty(ours, leaves).backward()
    close({name: leaf.grad for name, leaf in leaves.items()}, expected)


def test_vmap_over_weights() -> None:
    modules = [FusedLSTM(3, 5, dtype=torch.float64) for _ in range(4)]
    parameters, _ = torch.func.stack_module_state(modules)  # type: ignore[arg-type]
    xs = sequence(modules[0], 4, 6, 2)

    def run(parameters: dict[str, Tensor], x: Tensor) -> Any:
        return functional_call(modules[0], parameters, (x,))[0]

    ensemble = torch.stack([m(xs[0])[0] for m in modules])
    close(torch.vmap(run, (0, None))(parameters, xs[0]), ensemble)
    both = torch.stack([m(x)[0] for m, x in zip(modules, xs, strict=True)])
    close(torch.vmap(run)(parameters, xs), both)
    close(torch.vmap(run, (0, 1))(parameters, xs.transpose(0, 1)), both)

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return run(parameters, x).square().sum()  # type: ignore[no-any-return]

    found = torch.vmap(torch.func.grad(loss))(parameters, xs)
    for index, (module, x) in enumerate(zip(modules, xs, strict=True)):
        module(x)[0].square().sum().backward()
        for name, parameter in module.named_parameters():
            close(found[name][index], parameter.grad)


def test_vmap_in_vmap() -> None:
    module = FusedLSTM(3, 5, bidirectional=True, dtype=torch.float64)
    xs = sequence(module, 2, 3, 6, 2)
    own = {name: p.detach() for name, p in module.named_parameters()}
    gradient = torch.func.grad(
        lambda p, x: functional_call(module, p, (x,))[0].square().sum(), argnums=(0, 1)
    )
    found = torch.vmap(torch.vmap(gradient, (None, 0)), (None, 0))(own, xs)
    for i in range(2):
        for j in range(3):
            mine = torch.utils._pytree.tree_map(lambda g, i=i, j=j: g[i, j], found)
            close(mine, gradient(own, xs[i, j]))


# Forward mode, against the reference, whose every operation torch differentiates.


@OPTIONS
@pytest.mark.parametrize("trains", [False, True])
def test_forward_mode(options: dict[str, Any], trains: bool) -> None:
    module = FusedLSTM(3, 5, dtype=torch.float64, **options).requires_grad_(trains)
    x, tangent = sequence(module, 4, 2), sequence(module, 4, 2)
    lengths, mask = torch.tensor([4, 2]), torch.rand(4, 2) < 0.3
    arguments: dict[str, Any] = {"lengths": lengths, "reset_mask": mask}

    def ours(x: Tensor) -> Any:
        y, (h_n, c_n), cells = module(x, **arguments, return_cell_states=True)
        return y, h_n, c_n, cells

    def plain(x: Tensor) -> Any:
        return reference.lstm(
            x,
            None,
            module._flat_weights,
            num_layers=module.num_layers,
            bidirectional=module.bidirectional,
            **arguments,
        )

    expected = torch.func.jvp(plain, (x,), (tangent,))
    close(torch.func.jvp(ours, (x,), (tangent,)), expected)
    for grad_mode in (torch.no_grad, torch.enable_grad):
        with forward_ad.dual_level(), grad_mode():
            duals = ours(forward_ad.make_dual(x, tangent))
            close([forward_ad.unpack_dual(d).tangent for d in duals], list(expected[1]))


def test_forward_mode_of_weights_and_packed_sequences() -> None:
    module = FusedLSTM(3, 5, proj_size=2, dtype=torch.float64)
    run, samples = make_call(module, "packed")
    own = {name: p.detach() for name, p in module.named_parameters()}
    tangents = {name: torch.randn_like(p) for name, p in own.items()}
    sample = [s[0] for s in samples]
    _, found = torch.func.jvp(lambda p: run(p, *sample), (own,), (tangents,))

    def moved(step: float) -> Any:
        return run({name: p + step * tangents[name] for name, p in own.items()}, *sample)

    for mine, above, below in zip(found, moved(1e-6), moved(-1e-6), strict=True):
        torch.testing.assert_close(mine, (above - below) / 2e-6, rtol=1e-6, atol=1e-8)


def test_jacobians_and_hessians() -> None:
    module = FusedLSTM(3, 4, bidirectional=True, dtype=torch.float64)
    x = sequence(module, 3, 2)

    def plain(x: Tensor) -> Tensor:
        zero = x.new_zeros(2, 2, 4)
        return reference.lstm_layer(x, zero, zero, module._flat_weights)[0]

    def ours(x: Tensor) -> Tensor:
        return module(x)[0]  # type: ignore[no-any-return]

    for transform in (torch.func.jacrev, torch.func.jacfwd):
        close(transform(ours)(x), transform(plain)(x))
    expected = torch.func.hessian(lambda x: plain(x).square().sum())(x)
    for first in (torch.func.jacrev, torch.func.jacfwd):
        for second in (torch.func.jacrev, torch.func.jacfwd):
            if first is second is torch.func.jacfwd:
                continue  # forward over forward: torch nests no forward mode in custom functions
            close(second(first(lambda x: ours(x).square().sum()))(x), expected)


def test_transforms_without_grad_mode() -> None:
    ours, _ = make_twins(num_layers=2)
    weights = dict(ours.named_parameters())
    x = sequence(ours, 5, 4, 2)  # 5 samples

    def loss(weights: Any, x: Tensor) -> Tensor:
        return functional_call(ours, weights, (x,))[0].square().sum()  # type: ignore[no-any-return]

    samples = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
    expected = samples(weights, x)
    with torch.no_grad():
        close(samples(weights, x), expected)

    def run(x: Tensor) -> Tensor:
        return ours(x)[0]  # type: ignore[no-any-return]

    expected = jacobian(run, x[0])
    with torch.no_grad():
        close(torch.func.jacrev(run)(x[0]), expected)
        y, vjp = torch.func.vjp(run, x[0])
        cotangents = torch.randn(4, *y.shape, dtype=y.dtype)
        (found,) = torch.func.vmap(vjp)(cotangents)
    close(found, torch.tensordot(cotangents, expected, dims=y.dim()))
