# SPDX-License-Identifier: BSD-3-Clause
"""What test_distributed.py runs in two processes: python distributed_worker.py DIRECTORY.

Each check compares with the same step in one process, over the batch of both.
"""

import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from lstm_fused import FusedLSTM

D, H, STEPS, ROWS = 3, 4, 5, 6


class Model(nn.Module):
    def __init__(self, unused: bool = False) -> None:
        super().__init__()
        self.first = FusedLSTM(D, H, bidirectional=True)
        self.second = FusedLSTM(2 * H, H, num_layers=2)
        if unused:
            self.unused = FusedLSTM(D, H)
        self.head = nn.Linear(H, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        y, _ = self.first(x, lengths=lengths)
        y, (h_n, _) = self.second(y, lengths=lengths)
        result: Tensor = self.head(y.mean(0) + h_n[-1])
        return result


def make_model(**options: Any) -> Model:
    torch.manual_seed(1)
    return Model(**options).double()


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(STEPS, ROWS, D, generator=generator, dtype=torch.float64)
    return x, torch.arange(ROWS) % STEPS + 1


def train(model: Any, shard: slice, steps: int = 3) -> list[Tensor]:
    """The losses of a few steps on a part of each batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for step in range(steps):
        x, lengths = batch(step)
        loss = model(x[:, shard], lengths[shard]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assert_trained_alike(model: nn.Module, losses: list[Tensor], unused: bool = False) -> None:
    """The mean of both processes' losses and the weights are those of one process."""
    alone = make_model(unused=unused)
    expected = train(alone, slice(None))
    mean = torch.stack(losses)
    dist.all_reduce(mean)
    torch.testing.assert_close(mean / dist.get_world_size(), torch.stack(expected))
    for mine, theirs in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(whole(mine.detach()), theirs.detach())


def own_rows() -> slice:
    each = ROWS // dist.get_world_size()
    return slice(dist.get_rank() * each, (dist.get_rank() + 1) * each)


def check_ddp() -> None:
    for options in (
        {},
        {"static_graph": True},
        {"gradient_as_bucket_view": True},
        {"find_unused_parameters": True},
    ):
        unused = "find_unused_parameters" in options
        model = DistributedDataParallel(make_model(unused=unused), **options)  # type: ignore[arg-type]
        assert_trained_alike(model, train(model, own_rows()), unused)


def check_fully_shard(directory: str) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = make_model()
    for part in (model.first, model.second):
        fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    assert_trained_alike(model, train(model, own_rows()))

    # Saved by both processes, loaded into a sharded and into a whole model.
    state = get_model_state_dict(model)
    dcp.save(state, checkpoint_id=directory)
    other = make_model()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    plain = {name: torch.zeros_like(value) for name, value in other.state_dict().items()}
    fully_shard(other, mesh=mesh)
    sharded = get_model_state_dict(other)
    dcp.load(sharded, checkpoint_id=directory)
    set_model_state_dict(other, sharded)
    dcp.load(plain, checkpoint_id=directory)
    for name, value in state.items():
        torch.testing.assert_close(whole(other.state_dict()[name]), whole(value), rtol=0, atol=0)
        torch.testing.assert_close(plain[name], whole(value), rtol=0, atol=0)


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    check_ddp()
    check_fully_shard(os.path.join(sys.argv[1], "checkpoint"))
    dist.barrier()  # else the last to leave may find its peer gone
    dist.destroy_process_group()
    # NOTE: not by return: a thread of gloo that drops a tensor while Python shuts down ends the
    # process by "terminate called without an active exception" (torch 2.13, 1 run in 20).
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
