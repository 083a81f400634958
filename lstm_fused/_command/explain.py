# SPDX-License-Identifier: BSD-3-Clause
"""`python -m lstm_fused explain`: the plan of a shape, without a program around it."""

from __future__ import annotations

import argparse
import sys

import torch

from lstm_fused._command.environment import parse_device, why_absent
from lstm_fused.info import explain
from lstm_fused.module import FusedLSTM

_DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}
_SIZES = {"T": "steps", "N": "rows", "D": "input_size", "H": "hidden_size", "P": "proj_size"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "--shape",
        required=True,
        type=parse_shape,
        metavar="T=100,N=32,D=128,H=256[,P=64]",
        help="steps, rows of the batch, input_size (H if left out), hidden_size, proj_size",
    )
    parser.add_argument("--dtype", default="float32", choices=sorted(_DTYPES))
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--bidirectional", action="store_true")
    parser.add_argument("--device", default="cpu", type=parse_device, help="cpu, cuda:0")
    parser.add_argument("--threads", type=int, help="CPU threads; torch's own number if left out")


def parse_shape(text: str) -> dict[str, int]:
    """Sizes by their letters.

    Raises:
        argparse.ArgumentTypeError: no such text.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        letter, _, value = part.partition("=")
        letter = letter.strip()
        if letter not in _SIZES or letter in sizes or not value.strip().isdecimal():
            raise argparse.ArgumentTypeError(
                f"wanted sizes as T=100,N=32,D=128,H=256[,P=64], got {part!r}"
            )
        sizes[letter] = int(value)
    missing = [letter for letter in "TNH" if letter not in sizes]
    if missing:
        raise argparse.ArgumentTypeError(f"{', '.join(missing)} must be given, got {text!r}")
    sizes.setdefault("D", sizes["H"])
    return sizes


def run(options: argparse.Namespace) -> int:
    """Prints the plan; gives the process's status, 2 for sizes that no LSTM can have and for a
    device that is not there."""
    if problem := why_absent(options.device):
        print(problem, file=sys.stderr)
        return 2
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    sizes, dtype = options.shape, _DTYPES[options.dtype]
    try:
        # Nothing is computed, and x is a single element.
        module = FusedLSTM(
            sizes["D"],
            sizes["H"],
            options.layers,
            bidirectional=options.bidirectional,
            proj_size=sizes.get("P", 0),
            device=options.device,
            dtype=dtype,
        )
        x = torch.zeros(1, dtype=dtype, device=options.device)
        explain(module, x.expand(sizes["T"], sizes["N"], sizes["D"]))
    except (ValueError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0
