# SPDX-License-Identifier: BSD-3-Clause
"""Read hand-written digits row by row with an LSTM, and tell which digit each image shows.

The rows of an image are a sequence: LSTM over rows -> its last output -> linear -> 10 classes.
The data are scikit-learn's 1,797 digits of 8x8 pixels, or with `--mnist DIR` MNIST's IDX files.
"""

import argparse
import gzip
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import (
    DTYPES,
    ExampleError,
    Ranks,
    SharedDropout,
    at_least,
    batch_count,
    fingerprint,
    is_default,
    make_parser,
    report_goal,
    run_script,
    shuffled,
    widened,
)
from contest import Contest, Side
from matplotlib.axes import Axes
from plots import COLOURS, LINES, draw, epochs, finish
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional as F

GOAL = 0.95
CLASSES = 10
EVALUATION_BATCH = 1000


# ---------------------------------------------------------------------------------------- model


class RowReader(nn.Module):
    """Images (N, rows, columns) to class scores (N, 10)."""

    def __init__(
        self, lstm: type[nn.Module], columns: int, hidden: int, dropout: float, ranks: Ranks
    ) -> None:
        super().__init__()
        self.lstm = lstm(columns, hidden, batch_first=True)
        self.dropout = SharedDropout(dropout, ranks)
        self.head = nn.Linear(hidden, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        output, _ = self.lstm(images)
        scores: Tensor = self.head(self.dropout(output[:, -1]))
        return scores


# ----------------------------------------------------------------------------------------- data


@dataclass
class Part:
    """Images (N, rows, columns), and the digit that each shows (N,)."""

    images: Tensor
    digits: Tensor

    def __len__(self) -> int:
        return len(self.digits)


@dataclass
class Digits:
    """The three parts, with pixels scaled to mean 0 and standard deviation 1 over `train`."""

    name: str
    train: Part
    dev: Part
    test: Part

    def __post_init__(self) -> None:
        mean, deviation = self.train.images.mean(), self.train.images.std()
        for part in (self.train, self.dev, self.test):
            part.images = (part.images - mean) / deviation


def sklearn_digits() -> Digits:
    data = load_digits()
    rest, test = split(Part(torch.tensor(data.images) / 16, torch.tensor(data.target)), 0.2)
    train, dev = split(rest, 0.15)
    return Digits("scikit-learn's digits", train, dev, test)


def mnist_digits(folder: Path) -> Digits:
    rest = Part(*(read_idx(folder, "train", kind) for kind in ("images", "labels")))
    test = Part(*(read_idx(folder, "t10k", kind) for kind in ("images", "labels")))
    for part, name in ((rest, "train"), (test, "t10k")):
        if len(part.images) != len(part.digits):
            raise ExampleError(
                f"--mnist: {len(part.images)} {name} images, but {len(part.digits)} labels"
            )
        if len(part) < 20 * CLASSES:
            raise ExampleError(f"--mnist: {len(part)} {name} images are too few")
    train, dev = split(rest, 1 / 12)
    return Digits("MNIST", train, dev, test)


def split(part: Part, fraction: float) -> tuple[Part, Part]:
    """Set a part aside, with every class in proportion; the same for every seed."""
    rows = np.arange(len(part))
    try:
        kept, aside = train_test_split(
            rows, test_size=fraction, stratify=part.digits.numpy(), random_state=0
        )
    except ValueError as error:
        raise ExampleError(f"cannot split the images: {error}") from None
    return (
        Part(part.images[kept], part.digits[kept]),
        Part(part.images[aside], part.digits[aside]),
    )


def read_idx(folder: Path, part: str, kind: str) -> Tensor:
    """Read one IDX file: a big-endian header (magic number, sizes), then one byte per value."""
    magic, shape = (0x803, (28, 28)) if kind == "images" else (0x801, ())
    stem = f"{part}-{kind}"
    form = f"idx{len(shape) + 1}-ubyte"
    names = [stem + dot + form + end for end in ("", ".gz") for dot in ("-", ".")]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise ExampleError(f"--mnist: {folder} holds neither {names[0]} nor {names[2]}")
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise ExampleError(f"--mnist: cannot read {path}: {error}") from None

    header = 4 * (2 + len(shape))
    if len(raw) < header:
        raise ExampleError(f"--mnist: {path} is cut off: {len(raw)} bytes, no whole header")
    found, count, *sizes = np.frombuffer(raw, ">u4", header // 4).tolist()
    if found != magic:
        raise ExampleError(f"--mnist: {path} has magic number {found:#x}, not {magic:#x} ({kind})")
    if tuple(sizes) != shape:
        raise ExampleError(f"--mnist: {path} holds images of {sizes}, not of {list(shape)}")
    wanted = header + count * int(np.prod(shape, dtype=int))
    if len(raw) != wanted:
        raise ExampleError(f"--mnist: {path} has {len(raw)} bytes; its header promises {wanted}")
    values = torch.tensor(np.frombuffer(raw, np.uint8, offset=header).reshape(count, *shape))
    if kind == "images":
        return values / 255
    if count and int(values.max()) >= CLASSES:
        raise ExampleError(f"--mnist: {path} holds the label {int(values.max())}, not a digit")
    return values.long()


# ------------------------------------------------------------------------------------- training


def parse() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = make_parser("classify_digits.py", __doc__, epochs=30)
    add = parser.add_argument
    add("--mnist", type=Path, metavar="DIR", help="read MNIST's IDX files, plain or .gz, from here")
    add("--hidden", type=at_least(int, 1), default=128, metavar="H", help="(default %(default)s)")
    add("--batch", type=at_least(int, 1), default=64, metavar="N", help="(default %(default)s)")
    add("--lr", type=at_least(float, 0), default=2e-3, help="(default %(default)s)")
    add("--dropout", type=at_least(float, 0, 1), default=0.3, help="(default %(default)s)")
    add(
        "--patience",
        type=at_least(int, 1),
        default=10,
        metavar="N",
        help="stop after so many epochs without a lower dev loss (default %(default)s)",
    )
    return parser, parser.parse_args()


def main() -> int:
    parser, options = parse()
    ranks = Ranks(options)
    digits = sklearn_digits() if options.mnist is None else mnist_digits(options.mnist)
    train_set = digits.train
    rows, columns = train_set.images.shape[1:]

    def build(lstm: type[nn.Module]) -> nn.Module:
        return RowReader(lstm, columns, options.hidden, options.dropout, ranks)

    contest = Contest(
        options,
        ranks,
        build,
        fingerprint(train_set.images),
        ("train loss", "dev loss"),
        lambda weights: torch.optim.AdamW(weights, lr=options.lr, weight_decay=0.1),
        clip=1.0,
        watch="dev loss",
        patience=options.patience,
    )

    def train(side: Side, epoch: int) -> float:
        total = torch.zeros((), device=ranks.device)
        for batch in shuffled(len(train_set), options.batch, options.seed, epoch):
            loss, _ = errors(side.net, train_set, batch)
            side.step(loss / len(batch))
            total += loss.detach()
        return ranks.total(total)[0] / len(train_set)

    def errors(net: nn.Module, part: Part, batch: Tensor) -> tuple[Tensor, Tensor]:
        """The summed loss and the number of right answers on this rank's rows of a batch."""
        images, wanted = ranks.share(part.images[batch], part.digits[batch])
        scores = widened(net(images.to(DTYPES[options.dtype])))
        loss = F.cross_entropy(scores, wanted, reduction="sum")
        return loss, (scores.argmax(1) == wanted).sum()

    def measure(side: Side, part: Part = digits.dev, name: str = "dev") -> dict[str, float]:
        batches = torch.arange(len(part)).tensor_split(batch_count(len(part), EVALUATION_BATCH))
        sums = [ranks.total(*errors(side.model, part, batch)) for batch in batches]
        loss, right = (sum(column) / len(part) for column in zip(*sums, strict=True))
        return {f"{name} loss": loss, f"{name} accuracy": right}

    ranks.say(
        f"{digits.name}: {len(train_set)} images to train on, {len(digits.dev)} dev, "
        f"{len(digits.test)} test; sequences of {rows} rows of {columns} pixels"
    )
    contest.run(train, measure, steps=batch_count(len(train_set), options.batch))
    agree = contest.verdict()
    results = {side.name: measure(side, digits.test, "test") for side in contest.sides}
    for name, result in results.items():
        ranks.say(
            f"test           {name} loss {result['test loss']:.4f}, "
            f"accuracy {result['test accuracy']:.2%}"
        )

    def own_panel(axes: Axes) -> None:
        for side in contest.sides:
            accuracy = [row["dev accuracy"] for row in side.history]
            axes.plot(
                epochs(contest),
                accuracy,
                color="tab:purple",
                label=f"dev, {side.name}",
                **LINES[side.name],
            )
            axes.plot(
                contest.best_epoch() + 1,
                results[side.name]["test accuracy"],
                "*",
                markersize=18 if side.name == "nn.LSTM" else 8,
                color=COLOURS[side.name],
                label=f"test, {side.name}",
            )
        axes.axhline(GOAL, color="black", linestyle="--", linewidth=1, label="goal on the test set")
        finish(axes, "accuracy", "epoch", "share of images read rightly")

    draw(contest, f"{digits.name}: an LSTM reads images row by row", "cross-entropy", own_panel)
    reached = all(result["test accuracy"] >= GOAL for result in results.values())
    goal = report_goal(ranks, f"test accuracy of {GOAL:.0%}", reached, is_default(parser, options))
    return 0 if agree and goal else 1


if __name__ == "__main__":
    sys.exit(run_script(main))
