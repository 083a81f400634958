# SPDX-License-Identifier: BSD-3-Clause
"""Saved tensors that are changed in place under torch.compile, inside the region or after it: the
gradients are those of the values that the forward used, or torch refuses."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kit.twins import D, H
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lstm_fused import FusedLSTM, FusedLSTMCell, FusedLSTMFunction, functional

T, N = 5, 3
BACKENDS = ["eager", "aot_eager", "inductor"]
backends = pytest.mark.parametrize("backend", BACKENDS)


def close(ours: Any, expected: Any) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def gradients_or_refusal(call: Callable[[], list[Tensor]]) -> list[Tensor] | None:
    try:
        return call()
    except RuntimeError as error:
        assert re.search("modified (by an )?inplace", str(error))
        return None


class Values:
    """What a layer is given and gives, by name."""

    def __init__(self, **tensors: Tensor) -> None:
        self.__dict__.update(tensors)

    x: Tensor
    h: Tensor
    c: Tensor
    lengths: Tensor
    mask: Tensor
    y: Tensor
    h_n: Tensor
    c_n: Tensor


def arguments(batch_first: bool = False, layers: int = 1) -> list[Tensor]:
    torch.manual_seed(3)
    x, h, c = torch.randn(T, N, D), torch.randn(layers, N, H), torch.randn(layers, N, H)
    mask = torch.rand(T, N) < 0.3
    if batch_first:
        x, mask = x.transpose(0, 1).contiguous(), mask.t().contiguous()
    return [x, h, c, torch.tensor([5, 2, 0]), mask]


# An edit in place of a layer's values, and the same of y on a copy.
Edit = tuple[Callable[[Values], Any], Callable[[Tensor], Tensor]]
EDITS: dict[str, Edit] = {
    "y.relu_": (lambda v: v.y.relu_(), lambda y: y.relu()),
    "y.mul_": (lambda v: v.y.mul_(0.5), lambda y: y * 0.5),
    "y.masked_fill_": (
        lambda v: v.y.masked_fill_(v.y.detach() > 0, 0),
        lambda y: y.masked_fill(y.detach() > 0, 0),
    ),
    "h.copy_": (lambda v: v.h.copy_(v.h_n.detach()), lambda y: y),
    "c.copy_": (lambda v: v.c.copy_(v.c_n.detach()), lambda y: y),
    "x.zero_": (lambda v: v.x.zero_(), lambda y: y),
    "mask.zero_": (lambda v: v.mask.zero_(), lambda y: y),
    "lengths.fill_": (lambda v: v.lengths.fill_(T), lambda y: y),
}
edits = pytest.mark.parametrize("edit", EDITS)


def run(module: FusedLSTM, given: list[Tensor], edit: Callable[[Values], Any]) -> Tensor:
    x, h, c, lengths, mask = given
    y, (h_n, c_n) = module(x, (h, c), lengths=lengths, reset_mask=mask)
    edit(Values(x=x, h=h, c=c, lengths=lengths, mask=mask, y=y, h_n=h_n, c_n=c_n))
    return y.pow(2).sum() + h_n.pow(2).sum() + c_n.sum()


def expected_gradients(module: FusedLSTM, change: Callable[[Tensor], Tensor]) -> list[Tensor]:
    x, h, c, lengths, mask = arguments(module.batch_first, module.num_layers)
    y, (h_n, c_n) = module(x, (h, c), lengths=lengths, reset_mask=mask)
    loss = change(y).pow(2).sum() + h_n.pow(2).sum() + c_n.sum()
    return list(torch.autograd.grad(loss, list(module.parameters())))


@backends
@edits
@pytest.mark.parametrize("batch_first", [False, True])
def test_changes_inside_the_compiled_region(edit: str, backend: str, batch_first: bool) -> None:
    torch._dynamo.reset()
    module = FusedLSTM(D, H, batch_first=batch_first)
    in_place, apart = EDITS[edit]
    compiled: Any = torch.compile(lambda given: run(module, given, in_place), backend=backend)

    def call() -> list[Tensor]:
        loss = compiled(arguments(batch_first))
        return list(torch.autograd.grad(loss, list(module.parameters())))

    found = gradients_or_refusal(call)
    if found is not None:
        close(found, expected_gradients(module, apart))
    assert found is not None or backend == "inductor" or not edit.startswith("y")


@backends
@pytest.mark.parametrize("edit", [*EDITS, "weight"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_changes_after_the_compiled_region(
    edit: str, backend: str, batch_first: bool, layers: int
) -> None:
    torch._dynamo.reset()
    module = FusedLSTM(D, H, num_layers=layers, batch_first=batch_first)
    in_place, apart = EDITS.get(edit, (None, lambda y: y))
    expected = expected_gradients(module, apart)
    compiled: Any = torch.compile(module, backend=backend)
    x, h, c, lengths, mask = arguments(batch_first, layers)
    y, (h_n, c_n) = compiled(x, (h, c), lengths=lengths, reset_mask=mask)
    if in_place is None:
        with torch.no_grad():
            module.weight_hh_l0.mul_(2)
    else:
        in_place(Values(x=x, h=h, c=c, lengths=lengths, mask=mask, y=y, h_n=h_n, c_n=c_n))
    loss = y.pow(2).sum() + h_n.pow(2).sum() + c_n.sum()
    found = gradients_or_refusal(lambda: list(torch.autograd.grad(loss, list(module.parameters()))))
    if found is not None:
        close(found, expected)


class Stateful(nn.Module):
    """A stream that keeps its state in buffers."""

    def __init__(self, cell: bool) -> None:
        super().__init__()
        self.rnn = FusedLSTMCell(D, H) if cell else FusedLSTM(D, H)
        leading = (N,) if cell else (1, N)
        self.register_buffer("h", torch.full((*leading, H), 0.5))
        self.register_buffer("c", torch.full((*leading, H), 0.3))

    def forward(self, x: Tensor, keeps: bool = True) -> Tensor:
        out = self.rnn(x, (self.h, self.c))
        h, c = out if isinstance(self.rnn, FusedLSTMCell) else out[1]
        if keeps:
            self.h.copy_(h.detach())
            self.c.copy_(c.detach())
        return h.pow(2).sum() + c.sum()


@backends
@pytest.mark.parametrize("cell", [False, True], ids=["layer", "cell"])
def test_state_buffers(cell: bool, backend: str) -> None:
    torch._dynamo.reset()
    model = Stateful(cell)
    x = torch.randn(N, D) if cell else torch.randn(T, N, D)
    weights = list(model.parameters())
    expected = list(torch.autograd.grad(model(x, False), weights))
    compiled: Any = torch.compile(model, backend=backend)
    found = gradients_or_refusal(lambda: list(torch.autograd.grad(compiled(x), weights)))
    if found is not None:
        close(found, expected)


@backends
@pytest.mark.parametrize("edit", ["none", "h", "c", "x", "weight"])
def test_cells(edit: str, backend: str) -> None:
    """Results of a cell that are overwritten, and arguments that change after the call."""
    torch._dynamo.reset()
    cell = FusedLSTMCell(D, H)
    given = {"x": torch.randn(N, D), "h": torch.randn(N, H), "c": torch.randn(N, H)}
    weights = list(cell.parameters())

    def call(function: Any, changed: bool) -> list[Tensor]:
        h, c = function(given["x"].clone(), (given["h"], given["c"]))
        if changed and edit == "none":
            h, c = h.relu_(), c.mul_(0.5)
        elif edit == "none":
            h, c = h.relu(), c * 0.5
        elif changed:
            with torch.no_grad():
                (cell.weight_hh if edit == "weight" else given.get(edit, given["x"])).mul_(2)
        return list(torch.autograd.grad(h.pow(2).sum() + c.pow(2).sum(), weights))

    expected = call(cell, False)
    compiled = torch.compile(cell, backend=backend)
    found = gradients_or_refusal(lambda: call(compiled, True))
    if found is not None:
        close(found, expected)
    assert found is not None or edit != "none"


# Modules that hand their layer a view of the input, or give out one of its output, with the input.
ONE_ROW_OR_STEP: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "a row of batch_first": (lambda: FusedLSTM(D, H, batch_first=True), (1, T, D)),
    "a step of batch_first": (lambda: FusedLSTM(D, H, batch_first=True), (N, 1, D)),
    "unbatched": (lambda: FusedLSTM(D, H), (T, D)),
    "layers": (lambda: FusedLSTM(D, H, 2, bidirectional=True), (T, D)),
    "options": (lambda: FusedLSTM(D, H, peephole=True), (T, D)),
    "cell": (lambda: FusedLSTMCell(D, H), (N, D)),
    "unbatched cell": (lambda: FusedLSTMCell(D, H), (D,)),
}


@backends
@pytest.mark.parametrize("case", ONE_ROW_OR_STEP)
def test_one_row_or_step(case: str, backend: str) -> None:
    """No layout differs, so nothing is moved: the module's own views are what is overwritten."""
    torch._dynamo.reset()
    make, shape = ONE_ROW_OR_STEP[case]
    module = make()
    weights = list(module.parameters())
    x = torch.randn(shape)
    compiled: Any = torch.compile(module, backend=backend)
    y = module(x)[0]
    expected = (
        torch.autograd.grad(y.pow(2).sum(), weights),
        torch.autograd.grad((module(x)[0] * 0.5).pow(2).sum(), weights),
    )
    for changed, right in zip(("x", "y"), expected, strict=True):
        given = x.clone()
        y = compiled(given)[0]
        if changed == "y":
            y.mul_(0.5)
        loss = y.pow(2).sum()
        if changed == "x":
            given.mul_(3)
        found = gradients_or_refusal(lambda loss=loss: list(torch.autograd.grad(loss, weights)))  # type: ignore[misc]
        assert found is not None or (backend == "eager" and changed == "x")
        if found is not None:
            close(found, list(right))


@backends
@pytest.mark.parametrize("changed", ["x", "weight"])
def test_views_of_what_the_graph_is_given(changed: str, backend: str) -> None:
    """A part of a buffer, and weights in a flat tensor, which change after the compiled region."""
    torch._dynamo.reset()
    like = FusedLSTM(D, H)
    flat = torch.cat([w.detach().flatten() for w in like.parameters()]).requires_grad_()
    buffer = torch.randn(2, T, N, D)
    sizes, shapes = zip(*((w.numel(), w.shape) for w in like.parameters()), strict=True)

    def loss(buffer: Tensor, flat: Tensor) -> Tensor:
        parts = flat.split(sizes)
        weights = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        zeros = torch.zeros(1, N, H)
        return functional.lstm(buffer[1], (zeros, zeros), weights)[0].pow(2).sum()

    expected = torch.autograd.grad(loss(buffer, flat), flat)
    found_loss = torch.compile(loss, backend=backend)(buffer, flat)
    with torch.no_grad():
        (buffer if changed == "x" else flat).mul_(3)
    found = gradients_or_refusal(lambda: list(torch.autograd.grad(found_loss, flat)))
    assert found is not None or backend == "eager" or changed == "weight"
    if found is not None:
        close(found, list(expected))


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor]], Callable[[Tensor], Any]]] = {
    "grad": lambda f: torch.func.grad(lambda x: f(x).pow(2).sum()),
    "vmap": torch.vmap,
    "vmap of grad": lambda f: torch.vmap(torch.func.grad(lambda x: f(x).pow(2).sum())),
    # Two outputs are differentiated, since each adds its own derivative to the compiled graph.
    "jacrev": lambda f: torch.func.jacrev(lambda x: f(x)[-1, 0, :2]),
    "grad of grad": lambda f: torch.func.grad(
        lambda x: torch.func.grad(lambda x: f(x).pow(2).sum())(x).sin().sum()
    ),
    "jacrev of jacrev": lambda f: torch.func.jacrev(
        lambda x: torch.func.jacrev(lambda x: f(x).pow(2).sum())(x)[1, 0, :2]
    ),
    "hessian": lambda f: torch.func.hessian(lambda x: f(x).pow(2).sum()),
    "jvp": lambda f: lambda x: torch.func.jvp(f, (x,), (x,)),
}


# Frozen weights change what AOTAutograd traces, and nothing that Inductor, which is slow, adds.
TRANSFORM_CASES = [
    (name, backend, frozen)
    for name in TRANSFORMS
    for backend in BACKENDS
    for frozen in (False, True)
    if not (frozen and backend == "inductor")
]


@pytest.mark.parametrize(("name", "backend", "frozen"), TRANSFORM_CASES)
def test_transforms_inside_of_compiled_functions(name: str, backend: str, frozen: bool) -> None:
    """Weights may require gradients that the transform does not ask for."""
    torch._dynamo.reset()
    module = FusedLSTM(D, H).requires_grad_(not frozen)
    x = torch.randn(2, 4, N, D) if "vmap" in name else torch.randn(4, N, D)
    function = TRANSFORMS[name](lambda x: module(x)[0])
    compiled: Any = torch.compile(function, backend=backend, fullgraph=True)
    expected = TRANSFORMS[name](lambda x: module.to_torch()(x)[0]) if name == "grad" else function
    close(compiled(x), expected(x))


def test_gradients_of_each_sample_in_a_compiled_function() -> None:
    """The weights are functional ones, which Dynamo takes for some that need no gradients."""
    torch._dynamo.reset()
    module = FusedLSTM(D, H)
    weights = {name: w.detach() for name, w in module.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(module, weights, (x,))[0]
        return y.sum()

    function = torch.vmap(torch.func.grad(loss), (None, 0))
    x = torch.randn(2, T, N, D)
    close(torch.compile(function, backend="eager")(weights, x), function(weights, x))


@backends
def test_output_overwritten_between_transforms(backend: str) -> None:
    torch._dynamo.reset()
    module = FusedLSTM(D, H)

    def loss(x: Tensor, in_place: bool) -> Tensor:
        y = module(x)[0]
        return (y.relu_() if in_place else y.relu()).pow(2).sum()

    x = torch.randn(T, N, D)
    compiled: Any = torch.compile(torch.func.grad(lambda x: loss(x, True)), backend=backend)
    close(compiled(x), torch.func.grad(lambda x: loss(x, False))(x))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_the_function_itself_saves_copies_when_traced(backend: str) -> None:
    torch._dynamo.reset()
    module = FusedLSTM(D, H)
    x, h, c, *_ = arguments()
    weights = list(module.parameters())

    def call(in_place: bool, x: Tensor, h: Tensor, c: Tensor) -> Tensor:
        flags = (None, None, None, False, False)
        y = FusedLSTMFunction.apply(x, h, c, *flags, *weights)[0]
        if in_place:
            x.zero_()
            h.zero_()
            return y.relu_().pow(2).sum()
        return y.relu().pow(2).sum()

    expected = torch.autograd.grad(call(False, x, h, c), weights)
    compiled: Any = torch.compile(call, backend=backend, fullgraph=True)
    close(torch.autograd.grad(compiled(True, x.clone(), h.clone(), c), weights), expected)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_torch_itself_overlooks_views_of_saved_results(backend: str) -> None:
    """The limit that is left: an output that the compiled function returns as a view made by the
    caller. torch's own operations are wrong in this way too, as the documentation says."""
    torch._dynamo.reset()
    x = (torch.randn(4, 4) + 4 * torch.eye(4)).requires_grad_()

    def function(x: Tensor) -> Tensor:
        return torch.linalg.inv(x).transpose(0, 1)

    expected = torch.autograd.grad((function(x) * 1).relu().pow(2).sum(), x)
    y = torch.compile(function, backend=backend)(x)
    y.relu_()
    (found,) = torch.autograd.grad(y.pow(2).sum(), x)
    if torch.allclose(found, expected[0]):
        pytest.skip("this torch has repaired it")


def test_torch_itself_recomputes_checkpoints_from_changed_arguments() -> None:
    """Another limit that is torch's: what a checkpoint was given is changed in the compiled region,
    and the checkpoint is computed once more from what has become of it."""
    torch._dynamo.reset()
    weight = torch.randn(D, D, requires_grad=True)

    def loss(x: Tensor, changes: bool) -> Tensor:
        y = checkpoint(lambda x: ((x * 2) @ weight).sin(), x, use_reentrant=False)
        if changes:
            x.mul_(3)
        return y.sum()

    x = torch.randn(N, D)
    expected = torch.autograd.grad(loss(x, False), weight)
    compiled = torch.compile(loss, backend="aot_eager")
    (found,) = torch.autograd.grad(compiled(x, True), weight)
    if torch.allclose(found, expected[0]):
        pytest.skip("this torch has repaired it")
