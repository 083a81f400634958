# SPDX-License-Identifier: BSD-3-Clause
"""What a torch without one of its private names makes of this package.

`names()` are those that lstm_fused/_torch/private.py looks up. `main(name, path)`, in a process of
its own, imports the package with one of them taken away and compares `results()` with those saved.
"""

import ast
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations

MODULE = "lstm_fused._torch.private"
PATH = Path(__file__).resolve().parents[2] / "lstm_fused" / "_torch" / "private.py"
D, H, T, N = 4, 5, 3, 2


def is_private(name: str) -> bool:
    """Whether a part of a dotted name begins with one underscore."""
    parts = name.split(".")
    is_name = all(part.isidentifier() for part in parts)
    return is_name and any(p.startswith("_") and not p.startswith("__") for p in parts)


def names() -> list[str]:
    tree = ast.parse(PATH.read_text(encoding="utf-8"))
    found = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return sorted({name for name in found if isinstance(name, str) and is_private(name)})


class _Renaming(ast.NodeTransformer):
    def __init__(self, name: str) -> None:
        self.name, self.count = name, 0

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        if node.value != self.name:
            return node
        self.count += 1
        return ast.copy_location(ast.Constant(f"{self.name}_that_is_gone"), node)


class _Loader(SourceFileLoader):
    """Loads private.py so that it looks for another name, which torch has not."""

    name_taken = ""

    def get_code(self, fullname: str) -> CodeType:
        renaming = _Renaming(self.name_taken)
        tree = renaming.visit(ast.parse(self.get_data(self.path)))
        assert renaming.count > 0, f"{PATH.name} does not look for {self.name_taken}"
        return compile(tree, self.path, "exec")


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != MODULE:
            return None
        return spec_from_file_location(fullname, PATH, loader=_Loader(fullname, str(PATH)))


def main(name: str, path: str) -> None:
    _Loader.name_taken = name
    sys.meta_path.insert(0, _Finder())
    expected = torch.load(path)
    found = results()
    assert found.pop("refused") == expected.pop("refused")
    torch.testing.assert_close(found, expected)


# ---- What must stay ----


def results() -> dict[str, Any]:
    """Results by name; the same in each process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    from lstm_fused import FusedLSTM

    module = FusedLSTM(D, H).double()
    x = torch.randn(T, N, D, dtype=torch.float64)
    return {name: call(module, x) for name, call in CALLS.items()}


def _loss(module: Any, x: Tensor) -> Tensor:
    y, (h_n, c_n) = module(x)
    loss: Tensor = y.square().sum() + (h_n * c_n).sum()
    return loss


def _forward(module: Any, x: Tensor) -> Any:
    with torch.no_grad():
        return module(x), module(x[:1, :1])


def _backward(module: Any, x: Tensor) -> Any:
    x = x.clone().requires_grad_()
    own = torch.autograd.grad(_loss(module, x), x)
    return own, torch.autograd.grad(_loss(module, x), [x, *module.parameters()])


def _double_backward(module: Any, x: Tensor) -> Any:
    variables = [x.clone().requires_grad_(), *module.parameters()]
    first = torch.autograd.grad(_loss(module, variables[0]), variables, create_graph=True)
    return torch.autograd.grad(sum(g.square().sum() for g in first), variables)


def _batched_gradients(module: Any, x: Tensor) -> Any:
    x = x.clone().requires_grad_()
    y = module(x)[0]
    rows = torch.eye(y.numel(), dtype=y.dtype)[:3].view(3, *y.shape)
    return torch.autograd.grad(y, x, rows, is_grads_batched=True)


def _overwritten(module: Any, x: Tensor) -> Any:
    x = x.clone().requires_grad_()
    y = module(x)[0]
    return torch.autograd.grad(y.mul_(2).sum(), x)


def _of_parameters(module: Any, x: Tensor) -> Tensor:
    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(module, parameters, (x,))[0].square().sum()

    return torch.func.grad(loss)(dict(module.named_parameters()))  # type: ignore[no-any-return]


def _vmap_of_grad(module: Any, x: Tensor) -> Any:
    samples = torch.stack([x, 2 * x])
    of_inputs = torch.func.vmap(torch.func.grad(lambda x: _loss(module, x)))(samples)
    return of_inputs, torch.func.vmap(lambda x: _of_parameters(module, x))(samples)


def _hessian(module: Any, x: Tensor) -> Any:
    return torch.func.jacrev(torch.func.grad(lambda x: _loss(module, x)))(x[:2, :1])


def _forward_mode(module: Any, x: Tensor) -> Any:
    with forward_ad.dual_level():
        y = module(forward_ad.make_dual(x, torch.ones_like(x)))[0]
        tangent = forward_ad.unpack_dual(y).tangent
    return tangent, torch.func.jvp(lambda x: module(x)[0], (x,), (x,))


def _outlived(module: Any, x: Tensor) -> Any:
    kept = []
    torch.func.grad(lambda x: (kept.append(x), x.sum())[1])(x)
    return torch.autograd.grad(_loss(module, kept[0]), list(module.parameters()))


def _compiled(module: Any, x: Tensor) -> Any:
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    return _backward(compiled, x)


def _compiled_transform(module: Any, x: Tensor) -> Any:
    gradient = torch.func.grad(lambda x: _loss(module, x))
    return torch.compile(gradient, backend="aot_eager")(x)


def _cell(module: Any, x: Tensor) -> Any:
    from lstm_fused import FusedLSTMCell

    cell = FusedLSTMCell(D, H).double()
    with torch.no_grad():
        for parameter, value in zip(cell.parameters(), module.parameters(), strict=True):
            parameter.copy_(value)
    h, c = cell(x[0])
    return h, torch.autograd.grad(h.sum() + c.sum(), list(cell.parameters()))


def _traced(module: Any, x: Tensor) -> Any:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # of comparing sizes
        return torch.jit.trace(module, x, check_trace=False)(2 * x)


def _symbolic(module: Any, x: Tensor) -> Any:
    return torch.fx.symbolic_trace(nn.Sequential(module))(x)


def _converted(module: Any, x: Tensor) -> Any:
    import lstm_fused

    plain = module.to_torch()
    twice = nn.LSTM(D, H).double()
    twice.load_state_dict(plain.state_dict())
    parametrizations.weight_norm(twice, "weight_hh_l0")
    return _loss(lstm_fused.convert(twice), x)


def _refused(module: Any, x: Tensor) -> Any:
    import lstm_fused
    from lstm_fused._torch.private import assert_async

    too_long = torch.tensor([T, T + 1])
    refused: list[Callable[[], Any]] = [
        lambda: module(x, lengths=too_long),
        lambda: module(x, lengths=too_long[:1]),
        lambda: lstm_fused.explain(module, x[0, 0]),
        lambda: assert_async((too_long <= T).all(), "lengths must be between 0 and T"),
    ]
    messages = []
    for call in refused:
        try:
            call()
        except (RuntimeError, ValueError) as error:
            messages.append(str(error).split("\n")[0])
    return messages, lstm_fused.explain(module, x)


CALLS: dict[str, Callable[[Any, Tensor], Any]] = {
    "forward": _forward,
    "backward": _backward,
    "double backward": _double_backward,
    "batched gradients": _batched_gradients,
    "overwritten": _overwritten,
    "vmap of grad": _vmap_of_grad,
    "hessian": _hessian,
    "forward mode": _forward_mode,
    "outlived": _outlived,
    "compiled": _compiled,
    "compiled transform": _compiled_transform,
    "cell": _cell,
    "traced": _traced,
    "symbolic": _symbolic,
    "converted": _converted,
    "refused": _refused,
}
