# SPDX-License-Identifier: BSD-3-Clause
"""The command line: run (the default), compare, report, history."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from benchmarks.case import CaseError, parse_dtype, parse_shape
from benchmarks.compare import compare, print_comparison
from benchmarks.history_page import write_pages
from benchmarks.history_records import FOLDER, add_run
from benchmarks.peers import PEERS, REFERENCE, Peer
from benchmarks.records import Record, read_results
from benchmarks.runner import Options
from benchmarks.session import Plan, Session
from benchmarks.suites import SUITES, parse_suites, resolve_threads
from benchmarks.table import print_results
from benchmarks.write_reports import write_reports

RESULTS = Path(__file__).parent / "results"


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.set_defaults(command="run")
    commands = parser.add_subparsers(dest="command")
    run = commands.add_parser("run", help="measure (the default)")
    add = run.add_argument
    add("--suite", default="all", help=f"with commas: {', '.join(SUITES)}, or all")
    add("--shape", action="append", default=[], metavar="T=100,N=32,D=128,H=256[,P=..][,L=..]")
    add("--dtype", action="append", default=[], help="every case in this type; may be repeated")
    add("--threads", type=int, default=0, metavar="N", help="CPU threads (default: the cores)")
    add("--peers", default="", help=f"with commas: {', '.join(PEERS)}; also gives them every case")
    add("--device", default="cpu", help="cpu or cuda")
    add("--rounds", type=int, default=0, metavar="N", help="turns of each peer (default 7)")
    add(
        "--minutes",
        type=float,
        default=-1,
        help="of the whole run; what does not fit is named (default 7, quick 3, full: no limit)",
    )
    add("--seconds", type=float, default=0.05, metavar="S", help="of timed calls in one turn")
    size = run.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="few cases and rounds: does it work?")
    size.add_argument("--full", action="store_true", help="every case, every peer")
    add("--zero-states", action="store_true", help="initial states of zero (haste needs them)")
    add("--cuda-graph", action="store_true", help="capture each call in a CUDA graph")
    add("--warm-l2", action="store_true", help="do not empty the GPU's L2 cache before each call")
    add("--out", type=Path, default=RESULTS, metavar="DIR", help="(default benchmarks/results)")
    add("--name", default="", help="of the files (default: the time)")
    add("--list", action="store_true", help="print the cases and end")
    against = commands.add_parser("compare", help="tell changes from noise")
    against.add_argument("before", type=Path)
    against.add_argument("after", type=Path)
    against.add_argument("--threshold", type=float, default=0.05, help="(default 0.05)")
    against.add_argument("--alpha", type=float, default=0.01, help="(default 0.01)")
    again = commands.add_parser("report", help="tables and reports of a file of results")
    again.add_argument("results", type=Path)
    past = commands.add_parser("history", help="the headline cases by commit: a page and tables")
    past.add_argument("--add", type=Path, action="append", default=[], metavar="RESULTS.jsonl")
    past.add_argument("--machine", default="", help="whose history --add adds to, as zen5-2cores")
    past.add_argument("--folder", type=Path, default=FOLDER, help="(default benchmarks/history)")
    return parser


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Options, "run" put in front where no command is named."""
    commands = ("run", "compare", "report", "history", "-h", "--help")
    words = list(arguments)
    if not words or words[0] not in commands:
        words.insert(0, "run")
    return make_parser().parse_args(words)


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    # A terminal has its own width; a file or a pipe takes all columns.
    console = Console() if sys.stdout.isatty() else Console(width=160)
    try:
        if options.command == "compare":
            before, after = read_results(options.before), read_results(options.after)
            found = compare(before, after, threshold=options.threshold, alpha=options.alpha)
            return print_comparison(console, found)
        if options.command == "report":
            results = read_results(options.results)
            print_results(console, results)
            write_reports(results, options.results)
            return 0
        if options.command == "history":
            return _history(options, console)
        return _run(options, console)
    except CaseError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 2
    except KeyboardInterrupt:
        return 130


def _history(options: argparse.Namespace, console: Console) -> int:
    if options.add and not options.machine:
        raise CaseError("--add wants --machine NAME, the machine's file in benchmarks/history")
    for path in options.add:
        if not add_run(options.folder, options.machine, read_results(path)):
            console.print(f"{path} is there already", markup=False)
    console.print("Written:", *map(str, write_pages(options.folder)), sep="\n  ", markup=False)
    return 0


def _level(options: argparse.Namespace) -> str:
    return "quick" if options.quick else "full" if options.full else "default"


def select_entries(options: argparse.Namespace, threads: int) -> Plan:
    """What to measure, in order, without repetitions."""
    level = _level(options)
    shapes = [parse_shape(text) for text in options.shape]
    dtypes = [parse_dtype(text) for text in options.dtype]
    if "tf32" in dtypes and options.device == "cpu":
        raise CaseError("dtype tf32: a GPU's, give --device cuda")
    plan: Plan = []
    for suite in parse_suites(options.suite):
        if shapes:
            entries = [entry for shape in shapes for entry in suite.of_shape(shape)]
        else:
            entries = suite.select(level)
        for entry in entries:
            case = replace(resolve_threads(entry.case, threads), zero_states=options.zero_states)
            for dtype in dtypes or [case.dtype]:
                changed = replace(entry, case=replace(case, dtype=dtype))
                if (suite.name, changed) not in plan:
                    plan.append((suite.name, changed))
    return plan


def select_peers(options: argparse.Namespace) -> tuple[list[Peer], list[Record]]:
    """The peers that can run, and a record of each that cannot."""
    names = [name.strip() for name in options.peers.split(",") if name.strip()] or list(PEERS)
    for name in names:
        if name not in PEERS:
            raise CaseError(f"peer {name!r} is none of {', '.join(PEERS)}")
    # Speed-ups need the reference.
    names = list(dict.fromkeys([*names, REFERENCE]))
    peers, skipped = [], []
    for peer in (PEERS[name] for name in PEERS if name in names):
        reason = peer.missing()
        if not reason and options.device.split(":")[0] not in peer.devices:
            reason = f"not on {options.device}"
        if reason:
            skipped.append({"kind": "skipped", "peer": peer.name, "reason": reason})
        else:
            peers.append(peer)
    return peers, skipped


def _run(options: argparse.Namespace, console: Console) -> int:
    threads = options.threads or len(os.sched_getaffinity(0))
    plan = select_entries(options, threads)
    peers, skipped = select_peers(options)
    if options.list:
        for suite, entry in plan:
            console.print(f"{suite}: {entry.case.label}", markup=False, highlight=False)
        return 0
    minutes = {"quick": 3.0, "full": math.inf, "default": 7.0}[_level(options)]
    how = Options(
        device=options.device,
        threads=threads,
        rounds=options.rounds or (3 if options.quick else 7),
        least_rounds=3 if options.quick else 5,
        seconds=options.seconds / 2 if options.quick else options.seconds,
        cold=not options.warm_l2,
        graph=options.cuda_graph,
    )
    unsaid = ("out", "name", "list", "command")
    session = Session(
        plan,
        peers,
        skipped,
        how,
        every_peer=bool(options.peers) or options.full,
        seconds=60 * (minutes if options.minutes < 0 else options.minutes),
        asked={k: v for k, v in vars(options).items() if k not in unsaid},
    )
    return session.run(console, options.out, options.name)
