# SPDX-License-Identifier: BSD-3-Clause
"""torch.func's transforms and torch.autograd's batched gradients, against nn.LSTM or a loop."""

from typing import Any

import pytest
import torch
from conftest import make_twins
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from lstm_fused import FusedLSTM

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


def test_vmap_over_data_and_over_weights() -> None:
    modules = [FusedLSTM(3, 5, dtype=torch.float64) for _ in range(4)]
    parameters, _ = torch.func.stack_module_state(modules)  # type: ignore[arg-type]
    xs = sequence(modules[0], 4, 6, 2)

    def run(parameters: dict[str, Tensor], x: Tensor) -> Any:
        return torch.func.functional_call(modules[0], parameters, (x,))[0]

    own = dict(modules[0].named_parameters())
    close(torch.vmap(run, (None, 0))(own, xs), torch.stack([modules[0](x)[0] for x in xs]))
    close(
        torch.vmap(run, (0, None))(parameters, xs[0]), torch.stack([m(xs[0])[0] for m in modules])
    )
    both = torch.stack([m(x)[0] for m, x in zip(modules, xs, strict=True)])
    close(torch.vmap(run)(parameters, xs), both)
    close(torch.vmap(run, (0, 1))(parameters, xs.transpose(0, 1)), both)


def test_gradient_of_each_sample() -> None:
    ours, _ = make_twins(bidirectional=True)
    xs = sequence(ours, 4, 6, 2)
    parameters = {k: p.detach() for k, p in ours.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(ours, parameters, (x,))[0]
        return y.square().sum()

    found = torch.vmap(torch.func.grad(loss), (None, 0))(parameters, xs)
    for index, x in enumerate(xs):
        ours.zero_grad()
        ours(x)[0].square().sum().backward()
        for name, parameter in ours.named_parameters():
            close(found[name][index], parameter.grad)
