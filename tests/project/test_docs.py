# SPDX-License-Identifier: BSD-3-Clause
"""The documents name what exists: files, links, names of the package, make's targets, settings.

Each check takes a document's path, relative to the root, and its text, and returns what is wrong.
"""

import re
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from kit.numeric import FLOORS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md"),
    *("benchmarks/README.md", "tools/*/README.md"),
)
Check = Callable[[str, str], list[str]]

# Folders of the tree: what begins with one of them is a path wherever it stands.
FOLDERS = (
    "benchmarks",
    "cmake",
    "csrc",
    "docs",
    "examples",
    "lstm_fused",
    "tests",
    "tools",
    r"\.ci",
)
ROOTED_PATH = re.compile(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./*{{}},-]*")
# What else is one: in prose and in trees, but not in programs, which name files of their own.
SUFFIXES = ("py", "pyi", "cpp", "h", "cu", "cuh", "md", "cmake", "toml", "txt")
FILE_NAME = re.compile(rf"(?<![\w./-])[\w./*-]+\.(?:{'|'.join(SUFFIXES)})\b(?![\w(])")
FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE_CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
DOTTED_NAME = re.compile(r"(?<![\w./-])lstm_fused(?!\.h\b)(?:\.\w+)+")
OP = re.compile(r"torch\.ops\.lstm_fused\.(\w+)")
MODULE_TO_RUN = re.compile(r"python -m ((?:benchmarks|lstm_fused|tools)(?:\.\w+)*)")
MAKE = re.compile(r"^\s*make ([a-z][\w-]*)", re.MULTILINE)
SETTING = re.compile(r"\bLSTM_FUSED_[A-Z_]+")
IDENTIFIER = re.compile(r"^(?:\w+::)*(\w*[a-z]\w*)(?:\(\))?$")


def code_of(text: str) -> Iterator[tuple[str, str]]:
    """All that is set as code, with its fence's language; "inline" is what stands in a sentence."""
    for match in FENCE.finditer(text):
        yield match[1], match[2]
    for match in INLINE_CODE.finditer(FENCE.sub("", text)):
        yield "inline", match[1]


def exists(path: str, *folders: Path) -> bool:
    """Whether a path or a pattern names something in one of these folders, or from the root."""
    if braces := re.search(r"\{([^{}]*)\}", path):
        ways = (path[: braces.start()] + way + path[braces.end() :] for way in braces[1].split(","))
        return all(exists(way, *folders) for way in ways)
    pattern = path.rstrip("/.,")
    return any(any(folder.glob(pattern)) for folder in (ROOT, *folders))


def check_paths(document: str, text: str) -> list[str]:
    missing = set()
    for language, code in code_of(text):
        for line in code.splitlines():
            named = ROOTED_PATH.findall(line)
            folders = [(ROOT / document).parent]
            if language in ("", "inline"):
                if line.startswith(tuple(named)):  # a tree: a folder, and files of it behind
                    folders.append(ROOT / named[0])
                named += [name for name in FILE_NAME.findall(line) if not name.startswith("/")]
            missing |= {name for name in named if not exists(name, *folders)}
    return [f"{document}: {name} does not exist" for name in sorted(missing)]


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a document."""
    found: set[str] = set()
    for heading in HEADING.findall(FENCE.sub("", text)):
        plain = LINK.sub(lambda match: match[0][1 : match[0].index("]")], heading)
        anchor = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        count = sum(known == anchor or known.startswith(f"{anchor}-") for known in found)
        found.add(f"{anchor}-{count}" if anchor in found else anchor)
    return found


def check_links(document: str, text: str) -> list[str]:
    faults = []
    for target in LINK.findall(FENCE.sub("", text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / document).parent / path if path else ROOT / document
        if not file.exists():
            faults.append(f"{document}: the link to {target} leads nowhere")
        elif anchor and anchor not in anchors(text if not path else file.read_text("utf-8")):
            faults.append(f"{document}: the link to {target} names no heading")
    return faults


@cache
def is_name(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    if name.startswith("lstm_fused._C"):  # which not every build has
        return f'"{name}"' in (ROOT / "setup.py").read_text("utf-8")
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        module = ".".join(parts[:count])
        try:
            spec = find_spec(module)
        except ModuleNotFoundError:
            continue
        if spec is None:
            continue
        try:
            value = import_module(module)
        except ImportError:  # a package that it is made for is not installed
            source = Path(spec.origin or "").read_text("utf-8")
            return all(
                re.search(rf"^\s*(def|class) {part}\b", source, re.M) for part in parts[count:]
            )
        for part in parts[count:]:
            if not hasattr(value, part):
                return False
            value = getattr(value, part)
        return True
    return False


def check_names(document: str, text: str) -> list[str]:
    faults = []
    for name in sorted(set(DOTTED_NAME.findall(text))):
        if not is_name(name):
            faults.append(f"{document}: {name} does not exist")
    for name in sorted(set(OP.findall(text))):
        if not hasattr(torch.ops.lstm_fused, name):
            faults.append(f"{document}: there is no op torch.ops.lstm_fused.{name}")
    for name in sorted(set(MODULE_TO_RUN.findall(text))):
        path = name.replace(".", "/")
        if not (ROOT / f"{path}.py").exists() and not (ROOT / path / "__main__.py").exists():
            faults.append(f"{document}: python -m {name} runs nothing")
    return faults


@cache
def make_targets() -> frozenset[str]:
    text = (ROOT / "Makefile").read_text("utf-8")
    return frozenset(re.findall(r"^([a-z][\w-]*):", text, re.MULTILINE))


def check_make(document: str, text: str) -> list[str]:
    named = {target for _, code in code_of(text) for target in MAKE.findall(code)}
    return [f"{document}: make has no target {name}" for name in sorted(named - make_targets())]


@cache
def sources() -> str:
    """The text of all files that are no documents, this one left out."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    paths = [ROOT / line for line in listed.stdout.splitlines()]
    if listed.returncode != 0:  # a source distribution
        paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
        paths += [ROOT / "setup.py", ROOT / "Makefile", ROOT / "CMakeLists.txt"]
    kinds = {".py", ".pyi", ".cpp", ".h", ".cu", ".cuh", ".cmake", ""}
    kept = [p for p in paths if p.suffix in kinds and p.is_file() and p != Path(__file__)]
    kept += [ROOT / "CMakeLists.txt"]
    return "\n".join(path.read_text("utf-8") for path in kept)


@cache
def words() -> frozenset[str]:
    return frozenset(re.findall(r"\w+", sources()))


def check_settings(document: str, text: str) -> list[str]:
    return [
        f"{document}: nothing reads {name}"
        for name in sorted(set(SETTING.findall(text)))
        if name not in words()
    ]


def check_identifiers(document: str, text: str) -> list[str]:
    """Names of functions, types and constants, in the documents that lead through the code."""
    if document not in ("docs/architecture.md", "CONTRIBUTING.md"):
        return []
    named = set()
    for language, code in code_of(text):
        if language == "inline" and (match := IDENTIFIER.match(code)):
            named.add(match[1])
    named = {name for name in named if "_" in name or re.search(r"[a-z][A-Z]", name)}
    return [f"{document}: no source has {name}" for name in sorted(named - words())]


CHECKS: tuple[Check, ...] = (
    check_paths,
    check_links,
    check_names,
    check_make,
    check_settings,
    check_identifiers,
)


@pytest.mark.parametrize("check", CHECKS)
def test_documents(check: Check) -> None:
    documents = sorted({path for pattern in DOCUMENTS for path in ROOT.glob(pattern)})
    assert len(documents) >= 9
    faults = []
    for path in documents:
        faults += check(path.relative_to(ROOT).as_posix(), path.read_text("utf-8"))
    assert not faults, "\n".join(faults)


def test_floors_are_those_of_the_tests() -> None:
    text = (ROOT / "docs" / "numerics.md").read_text("utf-8")
    rows = re.findall(r"^\| (\w+) \| ([\d.e-]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    assert {getattr(torch, name): float(floor) for name, floor, _ in rows} == FLOORS
    for name, floor, units in rows:
        share = float(floor) / torch.finfo(getattr(torch, name)).eps
        assert share == pytest.approx(float(units), rel=0.02)


# The check, the document, its text. Each text of the first list has one fault, of the second none.
BAD = [
    (check_paths, "README.md", "`csrc/cpu/made_up.cpp`"),
    (check_paths, "README.md", "`csrc/cpu/{plan,made_up}.cpp`"),
    (check_paths, "README.md", "`tests/cuda/test_made_up_*.py`"),
    (check_paths, "README.md", "```\nlstm_fused/made_up.py   a module\n```"),
    (check_paths, "README.md", "```\nlstm_fused/   module.py, made_up.py\n```"),
    (check_paths, "README.md", "```bash\npython -m pytest tests/made_up\n```"),
    (check_paths, "docs/cuda.md", "`made_up.py`"),
    (check_links, "docs/cuda.md", "[a](made_up.md)"),
    (check_links, "docs/cuda.md", "[a](../README.md#made-up)"),
    (check_links, "docs/cuda.md", "# One\n[a](#two)"),
    (check_names, "README.md", "lstm_fused.functional.made_up"),
    (check_names, "README.md", "`lstm_fused.made_up.lstm`"),
    (check_names, "README.md", "`lstm_fused._C_made_up`"),
    (check_names, "README.md", "`torch.ops.lstm_fused.made_up`"),
    (check_names, "README.md", "`python -m tools.made_up`"),
    (check_make, "README.md", "`make made-up`"),
    (check_make, "README.md", "```bash\nmake made-up X=1\n```"),
    (check_settings, "README.md", "`LSTM_FUSED_MADE_" + "UP=1`"),
    (check_identifiers, "docs/architecture.md", "`cuda::made_" + "up()`"),
    (check_identifiers, "docs/architecture.md", "`MadeUp" + "Plan`"),
]
GOOD = [
    (check_paths, "README.md", "`csrc/cpu/{plan,group}.cpp`, `csrc/cuda/`, `lstm_fused/*.py`"),
    (check_paths, "README.md", "```bash\npython made_up.py results.jsonl\n```"),
    (check_paths, "README.md", "```\nlstm_fused/   module.py, cell.py\n```"),
    (check_paths, "tools/cuda_on_cpu/README.md", "`device.py`, `run_nvcc.py`"),
    (check_links, "docs/cuda.md", "# A `b.c`: d\n[a](#a-bc-d), [b](../README.md#two-commands)"),
    (check_names, "README.md", "`lstm_fused.FusedLSTM.from_torch`, `lstm_fused.onnx`"),
    (check_names, "README.md", "`torch.ops.lstm_fused.lstm_forward`"),
    (check_names, "README.md", "`python -m tools.cuda_report`, `python -m tools.fingerprints`"),
    (check_make, "README.md", '`make bench BENCH="--quick"`, and make certain'),
    (check_settings, "README.md", "`LSTM_FUSED_MAX_ISA=avx2`"),
    (check_identifiers, "docs/architecture.md", "`cuda::make_forward_plan()`, `T·N`, `c = f·c`"),
]


@pytest.mark.parametrize(("check", "document", "text"), BAD)
def test_check_fails(check: Check, document: str, text: str) -> None:
    assert len(check(document, text)) == 1


@pytest.mark.parametrize(("check", "document", "text"), GOOD)
def test_check_passes(check: Check, document: str, text: str) -> None:
    assert check(document, text) == []
