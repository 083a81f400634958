# SPDX-License-Identifier: BSD-3-Clause
"""What the three examples share before training starts: options, ranks, batches and dropout.

Nothing here knows about LSTMs. `contest.py` trains the two sides; `plots.py` draws them.
"""

import argparse
import math
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

OUT = Path(__file__).parent / "out"


class ExampleError(Exception):
    """A bad argument or bad data: printed as one line, without a traceback."""


# ------------------------------------------------------------------------------------- options


def at_least(kind: type, low: float, below: float = math.inf) -> Callable[[str], float]:
    """An argparse type: a number of this kind, from `low` up to but not including `below`."""
    limit = f"at least {low}" + (f" and below {below}" if below < math.inf else "")

    def parse(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a valid {kind.__name__}") from None
        if not low <= number < below:
            raise argparse.ArgumentTypeError(f"{text} is out of range: it must be {limit}")
        return float(number) if kind is float else int(number)

    return parse


def make_parser(script: str, description: str | None, epochs: int) -> argparse.ArgumentParser:
    """A parser that holds the options of every example; each adds its own."""
    summary = (description or "").split("\n\n")[0]
    parser = argparse.ArgumentParser(prog=script, description=summary)
    parser.set_defaults(example=Path(script).stem)
    add = parser.add_argument
    positive = at_least(int, 1)
    add("--epochs", type=positive, default=epochs, metavar="N", help="(default %(default)s)")
    seed = at_least(int, 0, 2**32)
    add("--seed", type=seed, default=0, metavar="N", help="(default %(default)s)")
    add("--device", default="cpu", help="cpu, cuda or cuda:N (default %(default)s)")
    add("--dtype", choices=DTYPES, default="float32", help="(default %(default)s)")
    add("--threads", type=positive, metavar="N", help="CPU threads of each process")
    add("--only", choices=("nn", "fused"), help="train only this side; nothing is compared")
    add("--save", type=Path, metavar="PATH", help="write a checkpoint here after every epoch")
    add("--resume", type=Path, metavar="PATH", help="go on from a checkpoint that --save wrote")
    plot = OUT / f"{Path(script).stem}.png"
    add("--plot", type=Path, default=plot, metavar="PATH", help="(default examples/out/*.png)")
    return parser


def add_gates_option(parser: argparse.ArgumentParser, script: str) -> None:
    """For those examples that write a page of the LSTM's gates."""
    page = OUT / f"{Path(script).stem}.html"
    told = "page of the LSTM's gates (default examples/out/*.html)"
    parser.add_argument("--gates", type=Path, default=page, metavar="PATH", help=told)


# Options that a goal does not depend on: changing one of them leaves the run a default run.
FREE_OPTIONS = {"seed", "device", "threads", "only", "save", "resume", "plot", "gates"}


def is_default(parser: argparse.ArgumentParser, options: argparse.Namespace) -> bool:
    """Whether the goal of an example applies: every option that shapes the result is untouched."""
    return all(
        value == parser.get_default(name)
        for name, value in vars(options).items()
        if name not in FREE_OPTIONS
    )


def report_goal(ranks: "Ranks", goal: str, met: bool, binding: bool) -> bool:
    """Say whether a goal is met; False if it is not and was binding, as it is with defaults."""
    note = "" if binding else " (not judged: other settings than the defaults)"
    ranks.say(f"goal           {goal}: {'met' if met else 'NOT MET'}{note}")
    return met or not binding


def check_writable(path: Path | None, what: str) -> None:
    """Fail before training, not after it, where a result could not be written."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExampleError(f"{what}: cannot make the folder {path.parent}: {error}") from None
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ExampleError(f"{what}: cannot write the file {path}")


def run_script(main: Callable[[], int]) -> int:
    """Run `main` and return its exit status: 0 fine, 1 a check failed, 2 a bad argument."""
    try:
        status = main()
    except ExampleError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", flush=True)
        status = 2
    except KeyboardInterrupt:
        status = 130
    if dist.is_initialized():
        dist.destroy_process_group()
        # NOTE: not by return: a thread of gloo that drops a tensor while Python shuts down ends the
        # process by "terminate called without an active exception" (torch 2.13, 1 run in 20).
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


# --------------------------------------------------------------------------------------- ranks


class Ranks:
    """This process among those that `torchrun` started; alone where it was started plainly.

    Every rank walks through the same batches and takes its own rows of each. Losses are sums over
    rows divided by the rows of the *whole* batch, so that they, and the gradients, are those of a
    one-process run up to rounding.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        spread = dist.is_torchelastic_launched()
        self.rank = int(os.environ["RANK"]) if spread else 0
        self.world = int(os.environ["WORLD_SIZE"]) if spread else 1
        self.main = self.rank == 0
        self.batch_rows = 0
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self.device = self._device(options.device)
        if self.world > 1:
            # NOTE: NCCL refuses two ranks on one GPU; gloo works there too.
            own_gpu = self.device.type == "cuda" and self.world <= torch.cuda.device_count()
            dist.init_process_group("nccl" if own_gpu else "gloo")

    def _device(self, name: str) -> torch.device:
        try:
            device = torch.device(name)
        except RuntimeError:
            raise ExampleError(f"--device {name}: PyTorch knows no such device") from None
        if device.type == "cpu":
            return device
        if device.type != "cuda":
            raise ExampleError(f"--device {name}: the examples run on cpu and cuda")
        count = torch.cuda.device_count()
        if count == 0:
            raise ExampleError(f"--device {name}: this PyTorch sees no CUDA device")
        if self.world > 1:
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % count)
        elif (device.index or 0) >= count:
            raise ExampleError(f"--device {name}: there are {count} CUDA devices")
        else:
            device = torch.device("cuda", device.index or 0)
        # One order of summation, so that a seed fixes the curve on the GPU as well.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.deterministic = True
        torch.cuda.set_device(device)
        return device

    def share(self, *whole: Tensor) -> list[Tensor]:
        """This rank's rows (dimension 0) of tensors that hold one whole batch, on the device."""
        self.batch_rows = len(whole[0])
        if self.batch_rows < self.world:
            raise ExampleError(
                f"a batch of {self.batch_rows} rows cannot be shared by {self.world} ranks"
            )
        return [t.tensor_split(self.world)[self.rank].to(self.device) for t in whole]

    def total(self, *numbers: Tensor | float) -> list[float]:
        """Each number summed over all ranks."""
        row = torch.stack([torch.as_tensor(x, device=self.device).double() for x in numbers])
        if self.world > 1:
            dist.all_reduce(row)
        return row.tolist()

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def say(self, text: str = "") -> None:
        if self.main:
            print(text, flush=True)


# --------------------------------------------------------------------------- batches and layers


def shuffled(rows: int, batch_size: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """Row numbers of each batch of one epoch: an order that only seed and epoch decide.

    The batches are as equal as can be (at most `batch_size`), so that none is too small to share.
    """
    order = torch.randperm(rows, generator=generator(seed, epoch))
    return iter(order.tensor_split(batch_count(rows, batch_size)))


def batch_count(rows: int, batch_size: int) -> int:
    return -(-rows // batch_size)


def generator(seed: int, epoch: int) -> torch.Generator:
    """A generator for the data of one epoch, the same for both sides and on every rank."""
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)


def fingerprint(data: Tensor) -> int:
    """A number that tells whether a checkpoint was made from this very data."""
    return zlib.crc32(data.contiguous().numpy().tobytes())


def widened(x: Tensor) -> Tensor:
    """`x` in float32 where it is of a 16-bit type: losses are never summed in 16 bits."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class SharedDropout(nn.Module):
    """Dropout with a mask that does not depend on the number of ranks.

    Each rank draws the mask of the whole batch from the common generator state and keeps the rows
    that are its own.
    """

    def __init__(self, p: float, ranks: Ranks) -> None:
        super().__init__()
        self.p, self.ranks = p, ranks

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        draws = torch.rand(self.ranks.batch_rows, *x.shape[1:], device=x.device)
        keep = draws.tensor_split(self.ranks.world)[self.ranks.rank] >= self.p
        return x * keep / (1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"
