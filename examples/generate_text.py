# SPDX-License-Identifier: BSD-3-Clause
"""Teach an LSTM to write, one character at a time, and let it write some text.

The text runs as parallel streams through truncated back-propagation through time: the state at the
end of a piece enters the next one, detached. The text is Python's own English help on language
topics, which every installation ships with, or with `--text FILE` any text file.
"""

import argparse
import itertools
import math
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from common import (
    ExampleError,
    Ranks,
    add_gates_option,
    at_least,
    check_writable,
    fingerprint,
    make_parser,
    run_script,
    widened,
)
from contest import Contest, Side
from gates import save_gates
from matplotlib.axes import Axes
from plots import COLOURS, draw, finish
from torch import Tensor, nn
from torch.nn import functional as F

TEMPERATURES = (0.5, 0.8, 1.0)
HELD_OUT = 0.1
TRACED = 6000  # characters of the held-out text on the page of the gates, at most

State = tuple[Tensor, Tensor]


# ---------------------------------------------------------------------------------------- model


class Writer(nn.Module):
    """Characters (N, T) and a state to scores of the next of each (N, T, V) and a new state."""

    def __init__(self, lstm: type[nn.Module], characters: int, width: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, width)
        self.lstm = lstm(width, hidden, batch_first=True)
        self.head = nn.Linear(hidden, characters)

    def forward(self, characters: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        output, state = self.lstm(self.embedding(characters), state)
        return self.head(output), state


# ----------------------------------------------------------------------------------------- data


@dataclass
class Text:
    """A text as character numbers, cut into streams that run side by side."""

    alphabet: list[str]
    train: Tensor  # (N, T)
    held_out: Tensor  # (N, T')


def python_help() -> str:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise ExampleError("this Python has no pydoc_data: name a text file with --text") from None
    # Rules and gaps of tables, long runs of one sign, teach no language: cut to four signs.
    return re.sub(r"([^\w\n])\1{4,}", r"\1\1\1\1", "\n".join(topics.values()))


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ExampleError(f"--text: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ExampleError(f"--text: {path} is not text in UTF-8: {error}") from None


def cut(text: str, streams: int, piece: int) -> Text:
    """Number the characters, set the end of the text aside, and cut both parts into streams."""
    alphabet = sorted(set(text))
    number = {character: i for i, character in enumerate(alphabet)}
    whole = torch.tensor([number[character] for character in text], dtype=torch.long)
    kept = int(len(whole) * (1 - HELD_OUT))
    parts = whole[:kept], whole[kept:]
    # Every stream must hold one whole piece and the character after it.
    least = int(streams * (piece + 1) / HELD_OUT) + 1
    if min(map(len, parts)) < streams * (piece + 1):
        raise ExampleError(
            f"the text has {len(text):,} characters; {streams} streams with pieces of {piece} need "
            f"{least:,}: take a longer text, or a smaller --batch or --piece"
        )
    train, held_out = (p[: len(p) // streams * streams].reshape(streams, -1) for p in parts)
    return Text(alphabet, train, held_out)


def pieces(streams: Tensor, length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Successive pieces of all streams, each with the characters that come next: (N, length) both.

    What is left at the end of the streams and fills no piece is left out.
    """
    for start in range(0, streams.shape[1] - length, length):
        yield streams[:, start : start + length], streams[:, start + 1 : start + length + 1]


def count_pieces(streams: Tensor, length: int) -> int:
    return len(range(0, streams.shape[1] - length, length))


# -------------------------------------------------------------------------------------- writing


@torch.inference_mode()
def write(
    model: nn.Module, text: Text, prompt: str, length: int, temperature: float, seed: int
) -> tuple[str, float]:
    """Continue the prompt, one call of the model per character; the text and seconds per call."""
    device = next(model.parameters()).device
    draws = torch.Generator().manual_seed(seed)
    numbers = [text.alphabet.index(character) for character in prompt]
    scores, state = model(torch.tensor([numbers], device=device))
    began = time.perf_counter()
    for _ in range(length):
        chances = torch.softmax(widened(scores[0, -1]).cpu() / temperature, 0)
        if not chances.isfinite().all():
            raise ExampleError("the model's scores are not finite: it diverged in training")
        numbers.append(int(torch.multinomial(chances, 1, generator=draws)))
        scores, state = model(torch.tensor([[numbers[-1]]], device=device), state)
    seconds = (time.perf_counter() - began) / length
    return "".join(text.alphabet[i] for i in numbers), seconds


def show_samples(contest: Contest, text: Text, options: argparse.Namespace) -> None:
    """Print a sample at each temperature, and where the two sides begin to write differently."""
    say = contest.ranks.say
    times: dict[str, list[float]] = {side.name: [] for side in contest.sides}
    for temperature in TEMPERATURES:
        samples = {}
        for side in contest.sides:
            samples[side.name], seconds = write(
                side.model, text, options.prompt, options.characters, temperature, options.seed
            )
            times[side.name].append(seconds)
        *_, (writer, sample) = samples.items()
        say(f"\n--- temperature {temperature}, written by {writer} " + "-" * 40)
        say(sample)
        if len(samples) == 2:
            pairs = zip(*samples.values(), strict=True)
            same = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
            end = "all" if same == len(sample) else f"the first {same} of"
            say(f"--- nn.LSTM writes {end} {len(sample)} characters alike")
    say()
    told = ", ".join(f"{name} {min(t) * 1e6:.0f} µs" for name, t in times.items())
    say(f"one character  {told} (whole model, best of {len(TEMPERATURES)} samples)")


# ------------------------------------------------------------------------------------- training


def parse() -> argparse.Namespace:
    parser = make_parser("generate_text.py", __doc__, epochs=4)
    add_gates_option(parser, "generate_text.py")
    add, positive = parser.add_argument, at_least(int, 1)
    add("--text", type=Path, metavar="FILE", help="learn from this file in UTF-8")
    add("--hidden", type=positive, default=192, metavar="H", help="(default %(default)s)")
    add(
        "--width",
        type=positive,
        default=64,
        metavar="D",
        help="numbers that describe a character (default %(default)s)",
    )
    add("--batch", type=positive, default=64, metavar="N", help="streams (default %(default)s)")
    add(
        "--piece",
        type=positive,
        default=64,
        metavar="T",
        help="steps that a gradient runs back through (default %(default)s)",
    )
    add("--lr", type=at_least(float, 0), default=1.5, help="(default %(default)s)")
    add("--prompt", default="The ", help="what the samples begin with (default %(default)r)")
    add(
        "--characters",
        type=positive,
        default=300,
        metavar="N",
        help="length of a sample (default %(default)s)",
    )
    return parser.parse_args()


def main() -> int:
    options = parse()
    ranks = Ranks(options)
    check_writable(options.gates, "--gates")
    source = python_help() if options.text is None else read_text(options.text)
    text = cut(source, options.batch, options.piece)
    if not options.prompt or not set(options.prompt) <= set(text.alphabet):
        raise ExampleError(f"--prompt {options.prompt!r}: the text must hold all its characters")

    def build(lstm: type[nn.Module]) -> nn.Module:
        return Writer(lstm, len(text.alphabet), options.width, options.hidden)

    contest = Contest(
        options,
        ranks,
        build,
        fingerprint(text.train),
        ("train bits", "held-out bits"),
        # NOTE: Adam learns no faster here, and makes so much of the rounding in small gradients
        # that in four epochs it drives the two sides 1000 times as far apart as SGD does.
        lambda weights: torch.optim.SGD(weights, lr=options.lr, momentum=0.9),
        clip=1.0,
    )
    (train_streams,), (held_out_streams,) = ranks.share(text.train), ranks.share(text.held_out)

    def train(side: Side, _: int) -> float:
        total = torch.zeros((), device=ranks.device)
        state: State | None = None
        for now, after in pieces(train_streams, options.piece):
            scores, state = side.net(now, state)
            state = state[0].detach(), state[1].detach()
            loss = summed_loss(scores, after)
            side.step(loss / (options.batch * options.piece))
            total += loss.detach()
        return bits(total, text.train)

    def measure(side: Side) -> dict[str, float]:
        total = torch.zeros((), device=ranks.device)
        state: State | None = None
        for now, after in pieces(held_out_streams, options.piece):
            scores, state = side.model(now, state)
            total += summed_loss(scores, after)
        return {"held-out bits": bits(total, text.held_out)}

    def bits(loss: Tensor, streams: Tensor) -> float:
        """The loss of one pass over the streams in bits per character."""
        characters: int = count_pieces(streams, options.piece) * options.piece * options.batch
        return ranks.total(loss)[0] / (characters * math.log(2))

    ranks.say(
        f"{'Python help' if options.text is None else options.text}: {len(source):,} characters, "
        f"{len(text.alphabet)} different; {options.batch} streams, pieces of {options.piece}; "
        f"the last {HELD_OUT:.0%} are held out"
    )
    contest.run(train, measure, steps=count_pieces(text.train, options.piece))
    agree = contest.verdict()
    for side in contest.sides:
        held_out = side.history[-1]["held-out bits"]
        ranks.say(f"held out       {side.name} {held_out:.4f} bits per character")
    if ranks.main:
        show_samples(contest, text, options)

    def own_panel(axes: Axes) -> None:
        for side in contest.sides:
            clock = list(itertools.accumulate(side.seconds))
            held_out = [row["held-out bits"] for row in side.history]
            axes.plot(clock, held_out, "o-", color=COLOURS[side.name], label=side.name)
        finish(axes, "held-out text", "seconds of training", "bits per character")

    draw(contest, "An LSTM learns to write", "bits per character", own_panel)
    traced = text.held_out.flatten()[:TRACED]
    characters = "".join(text.alphabet[number] for number in traced)
    read = "Python's help texts" if options.text is None else options.text.name
    save_gates(contest, f"An LSTM reads {read}", [traced.unsqueeze(0)], characters)
    return 0 if agree else 1


def summed_loss(scores: Tensor, wanted: Tensor) -> Tensor:
    return F.cross_entropy(widened(scores).flatten(0, 1), wanted.flatten(), reduction="sum")


if __name__ == "__main__":
    sys.exit(run_script(main))
