# SPDX-License-Identifier: BSD-3-Clause
"""What `make docs` builds on: pictures and figures that are those of the committed results, pages
that Sphinx finds, and a check of the built links that can fail."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import site

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def test_pictures_are_those_of_the_results() -> None:
    files = site.pictures()
    assert {path.name for path in site.IMAGES.glob("*.svg")} == set(files)
    for name, content in files.items():
        assert (site.IMAGES / name).read_text("utf-8") == content, "run python -m benchmarks.site"


def test_tables_are_those_of_the_results() -> None:
    text = site.PAGE.read_text("utf-8")
    assert site.page(text) == text, "run python -m benchmarks.site"
    assert site.page(text.replace("| T=100 N=1 D=H=64 |", "| T=100 N=1 D=H=65 |")) == text


def test_pictures_are_for_light_and_dark() -> None:
    for path in (ROOT / "README.md", site.PAGE):
        text = path.read_text("utf-8")
        shown = re.findall(
            r'srcset="([^"]*)-dark\.svg">\s*<img [^>]*src="([^"]*)-light\.svg"', text
        )
        assert shown
        for dark, light in shown:
            assert dark == light
            assert (path.parent / f"{dark}-dark.svg").exists()


def test_every_page_stands_in_the_index() -> None:
    index = (DOCS / "index.md").read_text("utf-8").splitlines()
    pages = {path.stem for path in DOCS.glob("*.md")} - {"index"}
    assert pages == pages & set(index)


@pytest.mark.parametrize(
    ("html", "fault"),
    [
        ('<a href="other.html">', "page.html: other.html leads nowhere"),
        ('<a href="#there">', "page.html: #there names no anchor"),
        ('<img src="https://example.org/x.png">', "page.html: loads https://example.org/x.png"),
        ('<p id="there"><a href="page.html#there"><a href="https://example.org">', None),
    ],
)
def test_links_are_checked(tmp_path: Path, html: str, fault: str | None) -> None:
    (tmp_path / "page.html").write_text(html)
    done = subprocess.run(
        [sys.executable, DOCS / "check_links.py", tmp_path], capture_output=True, text=True
    )
    assert done.returncode == (0 if fault is None else 1)
    assert fault is None or done.stdout.strip() == fault
