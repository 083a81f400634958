# SPDX-License-Identifier: BSD-3-Clause
"""The code blocks of a page, and a program that runs them."""

import re
from pathlib import Path
from typing import NamedTuple

# A fence of any language, with a line before it that says why the block is not run.
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]*) -->\n)?```(?P<language>[^\n`]*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    language: str
    code: str
    line: int  # of its first line, from 1
    reason: str | None  # why it is not run


def blocks_of(text: str) -> list[Block]:
    return [
        Block(
            match["language"],
            match["code"],
            text.count("\n", 0, match.start("code")) + 1,
            match["reason"],
        )
        for match in BLOCK.finditer(text)
    ]


def python_program(path: Path) -> str:
    """All Python blocks of a page, one after the other in one namespace, as a program whose
    tracebacks name the page's lines."""
    program = ['namespace = {"__name__": "__main__"}']
    for block in blocks_of(path.read_text("utf-8")):
        if block.language == "python" and block.reason is None:
            code = "\n" * (block.line - 1) + block.code
            program.append(f"exec(compile({code!r}, {str(path)!r}, 'exec'), namespace)")
    return "\n".join(program)
