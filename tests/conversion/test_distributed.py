# SPDX-License-Identifier: BSD-3-Clause
"""DDP, FSDP2 and distributed checkpoints in two processes; activation checkpointing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed
from kit.numeric import assert_bitwise_equal
from kit.twins import D, make_twins
from torch.utils.checkpoint import checkpoint

WORKER = Path(__file__).parents[1] / "kit" / "distributed_worker.py"


def torchrun(*arguments: str, timeout: float = 240) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--standalone", *arguments]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this torch has no gloo",
)
def test_ddp_fully_shard_and_checkpoints_in_two_processes(tmp_path: Path) -> None:
    torchrun(str(WORKER), str(tmp_path))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(use_reentrant: bool) -> None:
    """Dropout draws in the second forward what it drew in the first."""
    module, _ = make_twins(num_layers=2, bidirectional=True, dropout=0.4)
    x = torch.randn(6, 4, D, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([6, 0, 3, 1])
    results = []
    for checkpointed in (False, True):
        torch.manual_seed(7)

        def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y, (_, c_n) = module(x, lengths=lengths)
            return y, c_n

        y, c_n = checkpoint(run, x, use_reentrant=use_reentrant) if checkpointed else run(x)
        (y.square().sum() + c_n.sum()).backward()
        grads = [x.grad, *(p.grad for p in module.parameters())]
        results.append([y.detach(), c_n.detach(), *grads])
        for leaf in (x, *module.parameters()):
            leaf.grad = None
    for mine, expected in zip(*results, strict=True):
        assert mine is not None
        assert_bitwise_equal(mine, expected)


@pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this torch has no gloo",
)
def test_an_example_has_the_same_losses_in_two_processes(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    script = Path(__file__).parents[2] / "examples" / "classify_digits.py"
    options = ["--epochs", "2", "--hidden", "16", "--only", "fused"]
    options += ["--plot", str(tmp_path / "plot.png")]
    alone = subprocess.run(
        [sys.executable, str(script), *options], capture_output=True, text=True, check=True
    ).stdout
    shared = torchrun(str(script), *options)

    def losses(output: str) -> list[list[str]]:
        """The table without its last column, the seconds, and the results on the test set."""
        lines = [line for line in output.splitlines() if line.strip()[:3] in ("1 |", "2 |")]
        assert len(lines) == 2
        tests = [line for line in output.splitlines() if line.startswith("test ")]
        return [line.split("|")[:-1] for line in lines] + [tests]

    assert losses(alone) == losses(shared)
