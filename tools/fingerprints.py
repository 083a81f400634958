# SPDX-License-Identifier: BSD-3-Clause
"""Fingerprints of results: what a change that is to leave every bit alone is checked by.

    python -m tools.fingerprints write before.json       (in the old tree, on this machine)
    python -m tools.fingerprints write after.json        (in the new one)
    python -m tools.fingerprints compare before.json after.json

A grid of shapes, dtypes, options and instruction sets runs forward and backward; of each result the
SHA-256 of its bytes is kept. Results of two machines need not agree: they may plan differently.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import lstm_fused
from lstm_fused import FusedLSTM, FusedLSTMCell

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# T, N, D, H: single steps, single rows, odd sizes, sizes around the vectors' and the panels'.
SHAPES = (
    (1, 1, 3, 5),
    (1, 9, 16, 32),
    (7, 1, 64, 64),
    (7, 3, 5, 17),
    (12, 33, 16, 40),
    (5, 70, 24, 64),
    (40, 2, 130, 257),
    (6, 4, 300, 520),
)
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"bias": False, "batch_first": True},
    {"bidirectional": True, "num_layers": 2},
    {"proj_size": 4, "bidirectional": True},
    {"recompute": True},
)
MASKS = ("", "lengths", "resets", "packed")


def _digest(tensors: Iterator[Tensor] | list[Tensor]) -> str:
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(str((tuple(tensor.shape), tensor.dtype)).encode())
        flat = tensor.detach().contiguous().view(-1)
        total.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return total.hexdigest()[:16]


def _inputs(shape: tuple[int, int, int, int], dtype: torch.dtype, first: bool) -> Tensor:
    steps, batch, features, _ = shape
    return torch.randn(*((batch, steps) if first else (steps, batch)), features).to(dtype)


def layer_results(
    shape: tuple[int, int, int, int], dtype: torch.dtype, options: dict[str, Any], mask: str
) -> dict[str, str]:
    """Fingerprints of one layer's forward, training step and single gradients."""
    torch.manual_seed(3)
    steps, batch, features, hidden = shape
    module = FusedLSTM(features, hidden, dtype=torch.float32, **options).to(dtype)
    first = bool(options.get("batch_first"))
    x = _inputs(shape, dtype, first)
    runs = module.num_layers * (2 if module.bidirectional else 1)
    hx = (
        torch.randn(runs, batch, module.proj_size or hidden).to(dtype),
        torch.randn(runs, batch, hidden).to(dtype),
    )
    call: dict[str, Any] = {"return_cell_states": mask != ""}
    lengths = torch.randint(0 if mask == "lengths" else 1, steps + 1, (batch,))
    if mask == "lengths":
        call["lengths"] = lengths
    if mask == "resets":
        call["reset_mask"] = torch.rand(x.shape[:2]) < 0.3

    def given(x: Tensor) -> Any:
        return pack_padded_sequence(x, lengths, first, False) if mask == "packed" else x

    def flat(result: Any) -> list[Tensor]:
        y, (h_n, c_n), *rest = result
        tensors = [y, h_n, c_n, *rest]
        return [t.data if isinstance(t, torch.nn.utils.rnn.PackedSequence) else t for t in tensors]

    found = {}
    with torch.no_grad():
        found["inference"] = _digest(flat(module(given(x), hx, **call)))
        found["no states"] = _digest(flat(module(given(x), **call)))
    leaf = x.clone().requires_grad_()
    states = tuple(s.clone().requires_grad_() for s in hx)
    outputs = flat(module(given(leaf), states, **call))
    found["training"] = _digest(outputs)
    weights = list(module.parameters())
    torch.manual_seed(4)
    grads = [torch.randn(o.shape).to(dtype) for o in outputs]

    def gradients(wanted: Sequence[Tensor], **more: Any) -> tuple[Tensor, ...]:
        return torch.autograd.grad(outputs, list(wanted), grads, retain_graph=True, **more)

    found["gradients"] = _digest(list(gradients([leaf, *states, *weights])))
    found["of input"] = _digest(list(gradients([leaf])))
    found["of weights"] = _digest(list(gradients(weights)))
    if steps * batch * hidden < 4000:
        (grad,) = gradients([leaf], create_graph=True)
        second = torch.autograd.grad(grad.float().square().sum(), [leaf, *states, *weights])
        found["second"] = _digest(list(second))
    return found


def transform_results(shape: tuple[int, int, int, int], dtype: torch.dtype) -> dict[str, str]:
    """Fingerprints of gradients of samples and of tangents."""
    from torch.func import functional_call, grad, jvp, vmap

    torch.manual_seed(5)
    _, _, features, hidden = shape
    module = FusedLSTM(features, hidden).to(dtype)
    x = _inputs(shape, dtype, False)
    weights = {name: p.detach() for name, p in module.named_parameters()}

    def loss(weights: dict[str, Tensor], row: Tensor) -> Tensor:
        y: Tensor = functional_call(module, weights, (row.unsqueeze(1),))[0]
        return y.float().square().sum()

    samples = vmap(grad(loss), (None, 1))(weights, x)
    tangent = jvp(lambda x: module(x)[0], (x,), (x.cos(),))[1]
    return {"samples": _digest(list(samples.values())), "tangent": _digest([tangent])}


def cell_results(shape: tuple[int, int, int, int], dtype: torch.dtype) -> dict[str, str]:
    torch.manual_seed(6)
    _, batch, features, hidden = shape
    cell = FusedLSTMCell(features, hidden).to(dtype)
    x = torch.randn(batch, features).to(dtype).requires_grad_()
    hx = tuple(torch.randn(batch, hidden).to(dtype).requires_grad_() for _ in range(2))
    h, c = cell(x, hx)
    gradients = torch.autograd.grad((h, c), [x, *hx, *cell.parameters()], (h.cos(), c.cos()))
    with torch.no_grad():
        inference = cell(x, hx)
    return {"cell": _digest([h, c, *inference]), "cell gradients": _digest(list(gradients))}


def all_results() -> dict[str, str]:
    """All of the grid under this process's instruction set, on one thread and on two."""
    found: dict[str, str] = {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for shape, dtype in itertools.product(SHAPES, DTYPES):
            name = f"{lstm_fused.build_info()['isa']} {threads} {dtype} T,N,D,H={shape}"
            parts = {
                f"{options} {mask}": layer_results(shape, dtype, options, mask)
                for options, mask in itertools.product(OPTIONS, MASKS)
            }
            parts["cell"] = cell_results(shape, dtype)
            if shape[0] * shape[1] * shape[3] < 4000:
                parts["transforms"] = transform_results(shape, dtype)
            for part, results in parts.items():
                found |= {f"{name} {part} {key}": value for key, value in results.items()}
    return found


def write(path: Path) -> None:
    found: dict[str, str] = {}
    for isa in lstm_fused.build_info()["isas"]:
        done = subprocess.run(
            [sys.executable, __file__, "run"],
            env={**os.environ, "LSTM_FUSED_MAX_ISA": isa},
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
        found |= json.loads(done.stdout)
    path.write_text(json.dumps(found, indent=0))
    print(f"{path}: {len(found)} fingerprints")


def compare(before: Path, after: Path) -> int:
    one, two = (json.loads(path.read_text()) for path in (before, after))
    differing = sorted(key for key in one.keys() | two.keys() if one.get(key) != two.get(key))
    print("\n".join(differing[:40]))
    print(f"{len(differing)} of {len(one.keys() | two.keys())} differ")
    return 1 if differing else 0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("do", choices=["write", "compare", "run"])
    parser.add_argument("paths", nargs="*", type=Path)
    args = parser.parse_args()
    if args.do == "run":
        print(json.dumps(all_results()))
        return 0
    if args.do == "write":
        write(args.paths[0])
        return 0
    return compare(*args.paths)


if __name__ == "__main__":
    sys.exit(main())
