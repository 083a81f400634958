# SPDX-License-Identifier: BSD-3-Clause
"""Trains an LSTM to sound like an amplifier, and writes what amplifier.c takes."""

from __future__ import annotations

import argparse
import wave
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lstm_fused import FusedLSTM, load_stream, save_stream

RATE = 48_000  # samples a second
UNITS = 24
FOLDER = Path(__file__).resolve().parent


def plucked_strings(seconds: float, seed: int) -> np.ndarray:
    """Notes of a guitar, by Karplus and Strong (1983): noise in a delay that loses its highs."""
    random = np.random.default_rng(seed)
    samples = np.zeros(int(seconds * RATE))
    begin = 0
    while begin < len(samples):
        period = int(RATE / (82.4 * 2 ** (random.integers(0, 30) / 12)))  # from the low E on
        length = min(int(RATE * random.uniform(0.1, 0.4)), len(samples) - begin)
        line = random.uniform(-1, 1, period) * random.uniform(0.1, 0.9)
        note = np.empty(length)
        for first in range(0, length, period):
            count = min(period, length - first)
            note[first : first + count] = line[:count]
            line = 0.4985 * (line + np.roll(line, -1))
        samples[begin : begin + length] += note
        begin += length
    return samples / np.abs(samples).max() * 0.9


def amplifier(x: np.ndarray) -> np.ndarray:
    """What the LSTM is to learn: filters around a valve whose bias follows the level."""
    y = np.empty_like(x)
    high = level = low = last = 0.0
    for i, sample in enumerate(x):
        high = 0.99 * (high + sample - last)  # cuts the lows
        last = sample
        level += 0.002 * (abs(high) - level)
        valve = np.tanh(6 * high - 0.8 * level)
        low += 0.35 * (valve - low)  # cuts the highs
        y[i] = 0.6 * low
    return y


def write_wav(path: Path, samples: np.ndarray) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((np.clip(samples, -1, 1) * 32767).round().astype("<i2").tobytes())


def read_wav(path: Path) -> np.ndarray:
    with wave.open(str(path), "rb") as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768


def error_to_signal(y: Tensor, target: Tensor) -> Tensor:
    """The power of the error, as a share of the signal's."""
    return (y - target).square().sum() / target.square().sum()


def train(x: np.ndarray, y: np.ndarray, epochs: int, rows: int = 16) -> tuple[FusedLSTM, nn.Linear]:
    """Truncated backpropagation through time over rows of the recording."""
    torch.manual_seed(0)
    lstm, head = FusedLSTM(1, UNITS), nn.Linear(UNITS, 1)
    steps = len(x) // rows
    inputs, targets = (
        torch.from_numpy(v[: rows * steps].astype(np.float32)).view(rows, steps, 1).transpose(0, 1)
        for v in (x, y)
    )
    optimizer = torch.optim.Adam([*lstm.parameters(), *head.parameters()], lr=4e-3)
    window, warm_up = 1024, 512
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 8e-3, total_steps=epochs * ((steps - warm_up) // window)
    )
    for epoch in range(epochs):
        with torch.no_grad():
            _, state = lstm(inputs[:warm_up])
        total = 0.0
        windows = range(warm_up, steps - window + 1, window)
        for begin in windows:
            out, state = lstm(inputs[begin : begin + window], state)
            loss = error_to_signal(head(out), targets[begin : begin + window])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            state = tuple(part.detach() for part in state)
            total += loss.item()
        print(f"epoch {epoch + 1:2}: error to signal {total / len(windows):.4f}")
    return lstm, head


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=12.0, help="of the signal to learn from")
    parser.add_argument("--out", type=Path, default=FOLDER, help="where the files go")
    parser.add_argument("--compare", type=Path, help="an output of amplifier.c; nothing is trained")
    options = parser.parse_args()
    if options.compare is None:
        learnt = plucked_strings(options.seconds, seed=1)
        lstm, head = train(learnt, amplifier(learnt), options.epochs)
        save_stream(lstm, options.out / "amplifier.stream", head=head)
        heard = plucked_strings(4.0, seed=2)
        write_wav(options.out / "input.wav", heard)
        write_wav(options.out / "target.wav", amplifier(heard))
        return 0

    stream = load_stream(options.out / "amplifier.stream")
    ours = stream.run(torch.from_numpy(read_wav(options.out / "input.wav"))[:, None])[:, 0]
    theirs = torch.from_numpy(read_wav(options.compare))
    target = torch.from_numpy(read_wav(options.out / "target.wav"))
    as_written = (ours.clamp(-1, 1) * 32767).round()
    difference = (as_written - (theirs * 32768).round()).abs().max().item()
    print(f"largest difference between C and Python: {difference:.0f} of 32767")
    print(f"error to signal of the amplifier: {error_to_signal(theirs, target).item():.4f}")
    return 0 if difference == 0 else 1


if __name__ == "__main__":
    raise SystemExit(main())
