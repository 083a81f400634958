# SPDX-License-Identifier: BSD-3-Clause
"""torch's private names stand in lstm_fused/_torch/private.py alone."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import private_names

ROOT = Path(__file__).resolve().parents[2]

# Names of torch that other files may use, though they begin with an underscore.
ALLOWED = {
    # Where nn.Module keeps what is registered. Programs read these everywhere, pickled modules hold
    # them, and `torch.nn.Module.__setstate__` of any release takes those of older ones.
    *("_parameters", "_buffers", "_modules", "_load_state_dict_pre_hooks"),
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"),
    # The list of weights of nn.LSTM, for which programs written for nn.LSTM ask a FusedLSTM too;
    # nn.RNNBase, from which FusedLSTM inherits, calls its methods.
    *("_flat_weights", "_flat_weights_names", "_init_flat_weights", "_update_flat_weights"),
    # What nn.DataParallel calls, and a module with state of its own overrides.
    "_replicate_for_data_parallel",
    # What torch.compile's module holds. Read with a default.
    "_orig_mod",
}
# Names with an underscore that are none of torch's: Python's own, and torchrl's.
OTHERS = {
    *("_make", "_replace", "_fields"),  # NamedTuple
    "_current_frames",  # sys
    "_lstm",  # torchrl's LSTMModule, whose method FusedLSTMModule overrides
}


def own_names(trees: list[ast.Module]) -> set[str]:
    """What classes of the package define: methods, and attributes of their instances."""
    found = set()
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                for part in node.body:
                    if isinstance(part, ast.FunctionDef):
                        found.add(part.name)
                    elif isinstance(part, ast.AnnAssign | ast.Assign):
                        targets = part.targets if isinstance(part, ast.Assign) else [part.target]
                        found |= {ast.unparse(target) for target in targets}
            elif isinstance(node, ast.Attribute) and ast.unparse(node) == f"self.{node.attr}":
                found |= {node.attr} if isinstance(node.ctx, ast.Store) else set()
    return found


def used_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Private names that a file imports or reads from other objects, and the lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "resolve_name"):
            for argument in node.args:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield node.lineno, argument.value


def faults(path: str, tree: ast.AST, own: set[str]) -> list[str]:
    return [
        f"{path}:{line}: {name} is private to torch: wanted in lstm_fused/_torch/private.py"
        for line, name in used_names(tree)
        if private_names.is_private(name)
        and name not in own | ALLOWED | OTHERS
        and not name.startswith("lstm_fused.")
    ]


def test_private_names_stand_in_one_file() -> None:
    paths = sorted((ROOT / "lstm_fused").rglob("*.py"))
    paths.remove(private_names.PATH)
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in paths]
    own = own_names(trees)
    found = []
    for path, tree in zip(paths, trees, strict=True):
        found += faults(path.relative_to(ROOT).as_posix(), tree, own)
    assert not found, "\n".join(found)
    used = {name for tree in trees for _, name in used_names(tree)}
    assert not (ALLOWED | OTHERS) - used, "allowed, and not used"


@pytest.mark.parametrize(
    "text",
    [
        "import torch._dynamo",
        "from torch._C import thing",
        "from torch.autograd.function import _SingleLevelFunction",
        "def f():\n    return torch._C._is_tracing()",
        "x = tensor._version",
        "x = getattr(torch, '_VF')",
    ],
)
def test_faults_are_found(text: str) -> None:
    assert faults("a.py", ast.parse(text), set())


@pytest.mark.parametrize(
    "text",
    [
        "from lstm_fused._torch.private import is_tracing",
        "x = module._parameters",
        "x = self.__dict__",
        "x = own._weights",
        "import torch.nn.functional",
    ],
)
def test_what_is_allowed_passes(text: str) -> None:
    assert faults("a.py", ast.parse(text), {"_weights"}) == []
