# SPDX-License-Identifier: BSD-3-Clause
"""Run one of compute-sanitizer's tools over the smoke calls, and say what its output means.

Exits with 0 where all is well, with 1 where the tool found an error, or did not run; and with
TOOL_LIMIT where it found none in the calls that it could run, and could not run others, which run
without it: its instrumentation takes registers, of which some kernels leave none.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.gpu.smoke import CASES

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
TOOL_LIMIT = 3
FOUND_ERRORS = 9
# What the tools say of machines that they do not run on.
_UNSUPPORTED = re.compile(r"Device not supported|is not supported on this", re.IGNORECASE)
_ERRORS = re.compile(r"ERROR SUMMARY: (\d+) error|SUMMARY: \d+ hazards? displayed \((\d+) error")
# A report of initcheck, and the kernel it is about.
_UNINITIALIZED = re.compile(r"Uninitialized .*\n=+ +at (.*)")


@dataclass(frozen=True)
class Verdict:
    code: int
    text: str


def command_of(tool: str, sanitizer: str) -> list[str]:
    words = [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND_ERRORS)]
    # Statuses that torch asks for, and gets as an answer, are none of ours.
    words += ["--report-api-errors", "no"]
    # cuBLAS's own kernels are not ours to mend. NOTE: initcheck must see all that write.
    if tool != "initcheck":
        words += ["--kernel-name", "kns=lstm_fused"]
    return [*words, sys.executable, "-m", "benchmarks.gpu.smoke"]


def environment_of(tool: str) -> dict[str, str]:
    """torch's allocator hides what lies past a tensor, and which memory was never written."""
    hides = tool in ("memcheck", "initcheck")
    return {**os.environ, **({"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if hides else {})}


def count_errors(tool: str, text: str) -> int | None:
    """Errors in our kernels, by the tool's summary; None where there is no summary."""
    summaries = [int(match[1] or match[2]) for match in _ERRORS.finditer(text)]
    if not summaries:
        return None
    if tool == "initcheck":
        return sum("lstm_fused" in kernel for kernel in _UNINITIALIZED.findall(text))
    return sum(summaries)


def judge(tool: str, code: int, text: str, runs_alone: bool | None = None) -> Verdict | None:
    """What the output means; None: it depends on whether the calls run without the tool.

    Args:
        code: the exit status of compute-sanitizer, which is the program's if there are no errors.
        text: what both printed.
        runs_alone: whether the program succeeds by itself; None: not known yet.
    """
    ran = len(re.findall(r"^ok ", text, re.MULTILINE))
    refused = re.findall(r"^refused (.*)", text, re.MULTILINE)
    errors = count_errors(tool, text)
    if errors:
        return Verdict(1, f"{tool} found {errors} error(s)")
    if not ran and _UNSUPPORTED.search(text):
        return Verdict(TOOL_LIMIT, f"{tool} does not run on this machine")
    if errors is None:
        return Verdict(1, f"{tool} did not run to its end: it gave no summary")
    if ran + len(refused) < len(CASES):
        return Verdict(1, f"the calls ended early, after {ran + len(refused)} of {len(CASES)}")
    # initcheck's exit status counts errors of other kernels too.
    if not refused and (code == 0 or (tool == "initcheck" and code == FOUND_ERRORS)):
        return Verdict(0, f"{tool} found no error in {ran} calls")
    if not refused or runs_alone is False:
        return Verdict(1, f"the calls failed: exit status {code}")
    if runs_alone is None:
        return None
    return Verdict(
        TOOL_LIMIT,
        f"{tool} found no error in {ran} calls; it cannot run {len(refused)} others, which run "
        "without it:\n  " + "\n  ".join(refused),
    )


def run(command: Sequence[str], environment: dict[str, str]) -> tuple[int, str]:
    """Its exit status and its output, which is shown as it comes."""
    lines = []
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    return process.returncode, "".join(lines)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.sanitize", description=__doc__)
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("sanitizer", help="the path of compute-sanitizer")
    options = parser.parse_args(arguments)
    tool = options.tool
    if shutil.which(options.sanitizer) is None:
        parser.error(f"the sanitizer must be a program, got {options.sanitizer}")
    code, text = run(command_of(tool, options.sanitizer), environment_of(tool))
    verdict = judge(tool, code, text)
    if verdict is None:
        print(f"== {tool} refused some calls; the same without it:", flush=True)
        alone, _ = run([sys.executable, "-m", "benchmarks.gpu.smoke"], environment_of(""))
        verdict = judge(tool, code, text, runs_alone=alone == 0)
    assert verdict is not None
    print(f"== {verdict.text}", flush=True)
    return verdict.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
