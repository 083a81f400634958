# SPDX-License-Identifier: BSD-3-Clause
"""The programs in the documents run: each page's Python blocks, in order, in a process of its own;
its C, against the library; and the gallery's."""

import shutil
import subprocess
from pathlib import Path

import pytest
from kit.doc_code import blocks_of, python_program
from kit.process import run_python

import lstm_fused
from tools.gallery import GALLERY, missing_packages

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / "benchmarks" / "README.md", ROOT / "examples" / "README.md", ROOT / "CONTRIBUTING.md"),
]
# Tests run beside each other, and threads that wait for each other wait for other tests too.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
LANGUAGES = {
    "python",  # run
    "c",  # compiled, and run
    "bash",  # commands; test_docs.py looks for the files, modules and targets that they name
    "sh",
    "cmake",
    "",  # trees, formulas, what programs print
    "{eval-rst}",  # Sphinx's own
}
# Why blocks are left out, by "<!-- not run: reason -->" on the line before, and how many: none now.
REASONS: dict[str, int] = {}


def has(path: Path, language: str) -> bool:
    blocks = blocks_of(path.read_text("utf-8"))
    return any(block.language == language and block.reason is None for block in blocks)


def names(language: str) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in PAGES if has(path, language)]


@pytest.mark.parametrize("name", names("python"))
def test_python_blocks(name: str, tmp_path: Path) -> None:
    program = python_program(ROOT / name)
    run_python(f"import os\nos.chdir({str(tmp_path)!r})\n{program}", timeout=600, **ONE_THREAD)


@pytest.mark.parametrize("name", sorted(path.stem for path in GALLERY.glob("*.py")))
def test_gallery(name: str, tmp_path: Path) -> None:
    path = GALLERY / f"{name}.py"
    if missing := missing_packages(path):
        pytest.skip(f"needs {', '.join(missing)}, which requirements-gallery.txt has")
    program = f"import os, runpy\nos.chdir({str(tmp_path)!r})\nrunpy.run_path({str(path)!r})"
    run_python(program, timeout=600, MPLBACKEND="Agg", **ONE_THREAD)


@pytest.mark.parametrize("name", names("c"))
def test_c_blocks(name: str, tmp_path: Path) -> None:
    package = Path(lstm_fused.__file__).parent
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    program = python_program(ROOT / name)
    run_python(f"import os\nos.chdir({str(tmp_path)!r})\n{program}", timeout=600, **ONE_THREAD)
    for block in blocks_of((ROOT / name).read_text("utf-8")):
        if block.language != "c" or block.reason is not None:
            continue
        source = tmp_path / "block.c"
        source.write_text(f'#line {block.line} "{name}"\n{block.code}')
        built = subprocess.run(
            [compiler, "-std=c99", "-Wall", "-Werror", "-I", package / "include", source, "-o",
             tmp_path / "block", "-L", package / "lib", "-llstm_fused",
             f"-Wl,-rpath,{package / 'lib'}"],
            capture_output=True, text=True,
        )  # fmt: skip
        assert built.returncode == 0, built.stderr
        done = subprocess.run(
            [tmp_path / "block"], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        float(done.stdout)


def test_missing_packages_are_found(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os, made_up_a.b\nfrom made_up_c import d\n"
        "distribution('torch')\ndef f():\n    distribution('made-up-e')\n"
    )
    assert missing_packages(program) == ["made-up-e", "made_up_a", "made_up_c"]
    assert not any(missing_packages(GALLERY / f"{name}.py") for name in ("sunspots", "text_gates"))


def test_every_block_is_known() -> None:
    counts = dict.fromkeys(REASONS, 0)
    for path in PAGES:
        for block in blocks_of(path.read_text("utf-8")):
            place = f"{path.relative_to(ROOT)}:{block.line}"
            assert block.language in LANGUAGES, f"{place}: language {block.language!r}"
            if block.reason is not None:
                assert block.language in ("python", "c"), f"{place}: nothing would run it anyway"
                assert block.reason in REASONS, f"{place}: not run, {block.reason!r}"
                counts[block.reason] += 1
    assert counts == REASONS


def test_a_broken_block_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n```python\nx = 1\n```\n\ntext\n\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError, match=r'page\.md", line 10'):
        run_python(python_program(page))
    page.write_text(page.read_text().replace("== 2", "== 1"))
    run_python(python_program(page))
