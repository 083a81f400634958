# SPDX-License-Identifier: BSD-3-Clause
"""Prints what was built and what it runs on, to be pasted into a report; or runs a command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from lstm_fused._check import check
from lstm_fused._command import explain
from lstm_fused._command.environment import parse_device, print_environment


def make_parser() -> argparse.ArgumentParser:
    """The commands, each of which sets `run`, a function of the options that gives the status."""
    parser = argparse.ArgumentParser(prog="python -m lstm_fused", description=__doc__)
    parser.set_defaults(run=lambda options: print_environment())
    commands = parser.add_subparsers(title="commands")
    command = commands.add_parser(
        "check",
        help="run every kernel, and compare it with float64 and nn.LSTM",
        description="Runs every kernel on every CUDA device (where there is none, on the CPU), "
        "forward and backward, and prints a table of errors and times; cells with options and, on "
        "the CPU, packed weights too. Exits with 1 where one is wrong. Takes a minute or two.",
    )
    command.add_argument("--device", type=parse_device, help="check this device alone: cpu, cuda:0")
    command.add_argument("--no-times", action="store_true", help="measure no times")
    command.set_defaults(run=lambda options: check(options.device, not options.no_times))
    command = commands.add_parser(
        "explain",
        help="print which kernels a shape takes, and how",
        description="Prints which kernels an LSTM of this shape takes, and how, layer by layer.",
    )
    explain.add_arguments(command)
    command.set_defaults(run=explain.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; gives the process's status."""
    options = make_parser().parse_args(arguments)
    status: int = options.run(options)
    return status


if __name__ == "__main__":
    sys.exit(main())
