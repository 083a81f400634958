# SPDX-License-Identifier: BSD-3-Clause
"""Train one model twice, with `nn.LSTM` and with `FusedLSTM`, and compare the two runs.

A script hands over a `build(lstm_class)` function and says how one epoch is trained and measured;
the rest is here: equal starts, alternating epochs, timing, the table, checkpoints and the verdict.
"""

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from common import DTYPES, FREE_OPTIONS, ExampleError, Ranks, check_writable
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm  # type: ignore[import-untyped]

from lstm_fused import FusedLSTM

LSTM_CLASSES: dict[str, type[nn.Module]] = {"nn.LSTM": nn.LSTM, "FusedLSTM": FusedLSTM}

# How far the losses may differ, relative to the larger. Two correct implementations round
# differently, and training feeds each difference back into the weights, where it grows tenfold
# every few epochs. In 16 bits it is large after one epoch: there it is told, but not judged.
TOLERANCES = {"float64": 1e-8, "float32": 1e-3}

# Keeps the small gradients of float16 above its smallest number, 6e-8; taken out again in float32.
FLOAT16_LOSS_SCALE = 1024.0

# Options that a resumed run may set anew. Files are recognised by their content instead.
RESUME_FREE = (FREE_OPTIONS - {"seed"}) | {"epochs", "prompt", "characters"}

BuildModel = Callable[[type[nn.Module]], nn.Module]
MakeOptimiser = Callable[[list[Tensor]], torch.optim.Optimizer]


class Side:
    """One model in training: its weights, optimiser, random state, losses and seconds."""

    def __init__(
        self,
        name: str,
        build: BuildModel,
        options: argparse.Namespace,
        ranks: Ranks,
        make_optimiser: MakeOptimiser,
        clip: float,
    ) -> None:
        self.name, self.ranks, self.clip = name, ranks, clip
        dtype = DTYPES[options.dtype]
        torch.manual_seed(options.seed)
        self.model = build(LSTM_CLASSES[name]).to(ranks.device, dtype)
        self.random_state = self._random_state()
        self.net = DistributedDataParallel(self.model) if ranks.world > 1 else self.model
        self.weights = list(self.model.parameters())
        # The optimiser of a 16-bit model works on float32 copies, else small steps would be lost.
        self.is_16_bit = dtype in (torch.bfloat16, torch.float16)
        self.masters: list[Tensor] = [*self.weights]
        if self.is_16_bit:
            self.masters = [w.detach().float() for w in self.weights]
        self.loss_scale = FLOAT16_LOSS_SCALE if dtype == torch.float16 else 1.0
        self.optimiser = make_optimiser(self.masters)
        self.history: list[dict[str, float]] = []
        self.seconds: list[float] = []
        self.best_state = self._copy_of_state()
        self.bar: Any = None

    def step(self, loss: Tensor) -> None:
        """One step of the optimiser; `loss` is this rank's part of the loss of the whole batch."""
        for weight in self.weights:
            weight.grad = None
        # DistributedDataParallel averages over ranks, where the sum is wanted.
        torch.autograd.backward(loss * (self.loss_scale * self.ranks.world))
        if self.is_16_bit:
            for master, weight in zip(self.masters, self.weights, strict=True):
                assert weight.grad is not None
                master.grad = weight.grad.float() / self.loss_scale
        nn.utils.clip_grad_norm_(self.masters, self.clip)
        self.optimiser.step()
        if self.is_16_bit:
            with torch.no_grad():
                for master, weight in zip(self.masters, self.weights, strict=True):
                    weight.copy_(master)
        self.bar.update()

    def train_epoch(self, train: Callable[["Side", int], float], epoch: int) -> float:
        """Run one epoch with this side's own random state, and time it."""
        self._set_random_state(self.random_state)
        self.model.train()
        self.ranks.barrier()
        began = self._now()
        loss = train(self, epoch)
        self.seconds.append(self._now() - began)
        self.random_state = self._random_state()
        return loss

    def keep_as_best(self) -> None:
        self.best_state = self._copy_of_state()

    def load_best(self) -> None:
        self.model.load_state_dict(self.best_state)
        self.model.eval()

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs to go on along the same curve."""
        return {
            "model": self.model.state_dict(),
            "masters": [m.detach() for m in self.masters],
            "optimiser": self.optimiser.state_dict(),
            "random_state": self.random_state,
            "best_state": self.best_state,
            "history": self.history,
            "seconds": self.seconds,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        with torch.no_grad():
            for master, saved in zip(self.masters, state["masters"], strict=True):
                master.copy_(saved)
        self.optimiser.load_state_dict(state["optimiser"])
        self.random_state |= state["random_state"]
        self.best_state = state["best_state"]
        self.history, self.seconds = state["history"], state["seconds"]

    def _copy_of_state(self) -> dict[str, Tensor]:
        return {key: value.detach().clone() for key, value in self.model.state_dict().items()}

    def _random_state(self) -> dict[str, Tensor]:
        state = {"cpu": torch.get_rng_state()}
        if self.ranks.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.ranks.device)
        return state

    def _set_random_state(self, state: dict[str, Tensor]) -> None:
        torch.set_rng_state(state["cpu"])
        if self.ranks.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self.ranks.device)

    def _now(self) -> float:
        if self.ranks.device.type == "cuda":
            torch.cuda.synchronize(self.ranks.device)
        return time.perf_counter()


class Contest:
    """The two sides (one with `--only`), trained in turns.

    `compared` names the losses that must agree between the sides. With `watch`, the weights of the
    epoch with the lowest value of that loss win, and training stops after `patience` epochs without
    a new lowest; both sides follow one decision, made on the mean of their values.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        ranks: Ranks,
        build: BuildModel,
        data_id: int,
        compared: Sequence[str],
        make_optimiser: MakeOptimiser,
        *,
        clip: float,
        watch: str | None = None,
        patience: int = 0,
    ) -> None:
        self.options, self.ranks, self.compared = options, ranks, tuple(compared)
        self.watch, self.patience = watch, patience
        check_writable(options.save, "--save")
        check_writable(options.plot, "--plot")
        names = {"nn": ["nn.LSTM"], "fused": ["FusedLSTM"]}.get(options.only, list(LSTM_CLASSES))
        self.sides = [Side(name, build, options, ranks, make_optimiser, clip) for name in names]
        self._check_equal_starts()
        self.settings = {
            key: value
            for key, value in vars(options).items()
            if key not in RESUME_FREE and isinstance(value, int | float | str)
        } | {"data": data_id}
        if options.resume is not None:
            self._resume()

    @property
    def epochs_done(self) -> int:
        return len(self.sides[0].history)

    def run(
        self,
        train: Callable[[Side, int], float],
        measure: Callable[[Side], dict[str, float]],
        steps: int,
    ) -> None:
        """Train to the last epoch: `train` returns the loss of an epoch of `steps` steps."""
        say = self.ranks.say
        if self.epochs_done:
            say(f"resumed after epoch {self.epochs_done} of {self.options.resume}")
            for epoch in range(self.epochs_done):
                self._print_row(epoch)
        todo = (self.options.epochs - self.epochs_done) * len(self.sides) * steps
        # tqdm's `disable=None` shows the bar on a terminal only, so that logs stay readable.
        with tqdm(
            total=todo, unit="step", leave=False, disable=None if self.ranks.main else True
        ) as bar:
            for epoch in range(self.epochs_done, self.options.epochs):
                if self._patience_is_over():
                    say(f"stopped: {self.patience} epochs without a lower {self.watch}")
                    break
                # The sides take turns in going first, so that neither always meets a warm machine.
                for side in self.sides if epoch % 2 == 0 else reversed(self.sides):
                    bar.set_description(f"epoch {epoch + 1} {side.name}")
                    side.bar = bar
                    loss = side.train_epoch(train, epoch)
                    side.model.eval()
                    with torch.inference_mode():
                        side.history.append({self.compared[0]: loss} | measure(side))
                    self._check_finite(side)
                if self.best_epoch() == epoch:
                    for side in self.sides:
                        side.keep_as_best()
                with bar.external_write_mode():
                    self._print_row(epoch)
                self._save()
        for side in self.sides:
            side.load_best()
        if self.watch:
            say(f"weights of epoch {self.best_epoch() + 1}, which has the lowest {self.watch}")

    def verdict(self) -> bool:
        """Print the wall-time ratio and how far the curves are apart; False if they part."""
        say, sides = self.ranks.say, self.sides
        times = ", ".join(f"{side.name} {sum(side.seconds):.1f} s" for side in sides)
        if len(sides) < 2:
            say(f"training time  {times}")
            return True
        ratios = [a / b for a, b in zip(sides[0].seconds, sides[1].seconds, strict=True)]
        total = sum(sides[0].seconds) / sum(sides[1].seconds)
        say(
            f"training time  {times}: ratio {total:.2f} (epochs: median "
            f"{statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f})"
        )
        gaps = self.gaps()
        told = f"curves         max relative difference of the losses {max(gaps):.1e}"
        dtype = self.options.dtype
        if dtype not in TOLERANCES:
            say(f"{told} ({dtype}: too coarse for a tolerance)")
            return True
        tolerance = TOLERANCES[dtype]
        parted = [epoch + 1 for epoch, gap in enumerate(gaps) if gap > tolerance]
        say(
            f"{told}, tolerance {tolerance:.0e} ({dtype}): they "
            + (f"DO NOT AGREE from epoch {parted[0]} on" if parted else "agree")
        )
        if parted and dtype != "float64":
            say("               (--dtype float64 tells an error from rounding grown in training)")
        return not parted

    def gaps(self) -> list[float]:
        """For each epoch, the largest relative difference between the sides' compared losses."""
        rows = zip(self.sides[0].history, self.sides[1].history, strict=True)
        return [max(relative_gap(a[name], b[name]) for name in self.compared) for a, b in rows]

    def _check_equal_starts(self) -> None:
        first, *others = [side.model.state_dict() for side in self.sides]
        for other in others:
            same = list(first) == list(other) and all(first[k].equal(other[k]) for k in first)
            if not same:
                raise RuntimeError("the two models do not start from the same weights")

    def _check_finite(self, side: Side) -> None:
        for key, value in side.history[-1].items():
            if not math.isfinite(value):
                raise ExampleError(
                    f"{side.name}: the {key} of epoch {len(side.history)} is {value}: the run "
                    "diverged (a smaller --lr or a wider --dtype may help)"
                )

    def best_epoch(self) -> int:
        """The epoch whose weights are kept: the last one if no loss is watched."""
        if self.watch is None:
            return self.epochs_done - 1
        watched = [
            sum(side.history[epoch][self.watch] for side in self.sides)
            for epoch in range(self.epochs_done)
        ]
        return watched.index(min(watched))

    def _patience_is_over(self) -> bool:
        return (
            self.watch is not None
            and self.epochs_done > 0
            and self.epochs_done - 1 - self.best_epoch() >= self.patience
        )

    def _print_row(self, epoch: int) -> None:
        cells = {
            key: [side.history[epoch][key] for side in self.sides]
            for key in self.sides[0].history[epoch]
        }
        cells["seconds"] = [side.seconds[epoch] for side in self.sides]
        width = 10 if len(self.sides) > 1 else 14
        if epoch == 0:
            heads = "".join(f" |{key:>{width * len(self.sides)}}" for key in cells)
            names = "".join(f"{side.name:>{width}}" for side in self.sides)
            self.ranks.say(f"epoch{heads}")
            self.ranks.say("     " + f" |{names}" * len(cells))
        row = ""
        for key, numbers in cells.items():
            digits = 2 if key == "seconds" else 4
            row += " |" + "".join(f"{number:{width}.{digits}f}" for number in numbers)
        self.ranks.say(f"{epoch + 1:5d}{row}")

    def _save(self) -> None:
        if self.options.save is None or not self.ranks.main:
            return
        content = {
            "settings": self.settings,
            "epochs": self.epochs_done,
            "sides": {side.name: side.state() for side in self.sides},
        }
        # Written apart and renamed, so that a stop in mid-write leaves the last checkpoint whole.
        partial = self.options.save.with_name(self.options.save.name + ".partial")
        torch.save(content, partial)
        os.replace(partial, self.options.save)

    def _resume(self) -> None:
        path = self.options.resume
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            settings, sides, epochs = content["settings"], content["sides"], content["epochs"]
        except OSError as error:
            raise ExampleError(f"--resume: cannot read {path}: {error.strerror}") from None
        except Exception as error:  # torch.load raises many types on a file that is none of its own
            first_line = str(error).splitlines()[0] if str(error) else ""
            raise ExampleError(
                f"--resume: {path} is not a checkpoint of these examples "
                f"({type(error).__name__}: {first_line})"
            ) from None
        differing = sorted(
            key
            for key in settings.keys() | self.settings.keys()
            if settings.get(key) != self.settings.get(key)
        )
        if "example" in differing:
            differing = ["example"]
        if differing:
            told = ", ".join(
                f"{key} was {settings.get(key)} and is {self.settings.get(key)}"
                for key in differing
            )
            raise ExampleError(f"--resume: {path} belongs to another run: {told}")
        if missing := [side.name for side in self.sides if side.name not in sides]:
            raise ExampleError(f"--resume: {path} holds no {' and no '.join(missing)}")
        if epochs > self.options.epochs:
            raise ExampleError(
                f"--resume: {path} holds {epochs} epochs, more than --epochs {self.options.epochs}"
            )
        for side in self.sides:
            side.load(sides[side.name])


def relative_gap(a: float, b: float) -> float:
    """|a - b| relative to the larger of the two."""
    return abs(a - b) / max(abs(a), abs(b), 1e-30)
