# SPDX-License-Identifier: BSD-3-Clause
"""Sphinx: the site that `make docs` builds of the pages in this folder. It fetches nothing."""

import os
import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

import lstm_fused

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))
from tools.gallery import GALLERY, missing_packages  # noqa: E402

project = "lstm_fused"
author = copyright = "the lstm_fused authors"
version = release = lstm_fused.__version__
language = "en"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
autosummary_generate = False
nitpicky = True  # a reference that leads nowhere is a warning, and a warning an error
default_role = "code"
smartquotes_action = "D"  # dashes of lists of arguments, and no quotation marks

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4  # by the names that GitHub gives, to which the pages link

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures stay short: the docstrings say shapes and dtypes
autodoc_class_signature = "mixed"
napoleon_use_rtype = False
napoleon_use_param = True
napoleon_use_ivar = True
napoleon_custom_sections = [("Args, Returns, Raises", "notes_style")]
# Names of torch and of the standard library: their pages are on the network.
nitpick_ignore_regex = [("py:.*", r"(torch|nn|os|matplotlib|collections|typing|pathlib)\..*")]

html_theme = "furo"
html_title = f"lstm_fused {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
templates_path: list[str] = []
exclude_patterns: list[str] = []
# The programs of the gallery run while the site is built; those whose packages are missing are
# shown without what they print and draw.
missing = {path.stem: missing_packages(path) for path in sorted(GALLERY.glob("*.py"))}
for name, packages in missing.items():
    if packages:
        print(f"gallery: {name} does not run without {', '.join(packages)}")
runnable = "|".join(name for name, packages in missing.items() if not packages)
sphinx_gallery_conf = {
    "examples_dirs": "../examples/gallery",
    "gallery_dirs": "gallery",
    "filename_pattern": rf"/({runnable})\.py$",
    "within_subsection_order": "FileNameSortKey",
    "capture_repr": (),
    "download_all_examples": False,
    "show_signature": False,
    "abort_on_example_error": True,
    "min_reported_time": 1000,
    "write_computation_times": False,
}
# Prompts are not copied.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Pages whose text stands elsewhere in the tree, where GitHub's readers look for it. What the pages
# have beyond their first paragraph stays.
ELSEWHERE = {
    "index": "README.md",
    "benchmarks": "benchmarks/README.md",
    "changelog": "CHANGELOG.md",
    "contributing": "CONTRIBUTING.md",
    "examples": "examples/README.md",
    "security": "SECURITY.md",
}
PAGES = {ROOT / path: f"{page}.md" for page, path in ELSEWHERE.items()}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
SOURCE = re.compile(r"^# .*\n\n.*\n")
PICTURE = re.compile(
    r'<picture>\s*<source [^>]*srcset="([^"]*)">\s*'
    r'<img alt="([^"]*)" src="([^"]*)"[^>]*>\s*</picture>'
)
FENCE = re.compile(r"^(```.*?^```\n)", re.MULTILINE | re.DOTALL)


def repository_url() -> str:
    """Where the sources can be read: known in GitHub's workflows, and nowhere else."""
    server, name = os.environ.get("GITHUB_SERVER_URL"), os.environ.get("GITHUB_REPOSITORY")
    return f"{server}/{name}/blob/{os.environ.get('GITHUB_SHA', 'HEAD')}" if name else ""


def relink(text: str, folder: Path) -> str:
    """The text with links that fit the site: to pages by their names, to other files of the tree by
    the repository's address, or, where that is not known, none."""

    def fitting(match: re.Match[str]) -> str:
        bang, label, target = match.groups()
        path, _, anchor = target.partition("#")
        if bang or not path or re.match(r"[a-z]+:", target):
            return match[0]
        file = (folder / path).resolve()
        if file.parent == DOCS or file in PAGES:
            page = PAGES.get(file, file.name)
            return f"[{label}]({page}{'#' + anchor if anchor else ''})"
        if not file.exists():
            return match[0]  # which is an error, and says so
        url = repository_url()
        return f"[{label}]({url}/{file.relative_to(ROOT)})" if url else label

    parts = FENCE.split(text)
    parts[::2] = [LINK.sub(fitting, part) for part in parts[::2]]
    return "".join(parts)


def both_themes(match: re.Match[str]) -> str:
    """A picture that follows the site's switch of light and dark, not only the system's."""
    dark, text, light = match.groups()
    images = [
        f'<img class="only-{theme}" alt="{text}" src="_static/{Path(path).name}">'
        for theme, path in (("light", light), ("dark", dark))
    ]
    return "\n".join(images)


def read_page(app: Sphinx, page: str, source: list[str]) -> None:
    if page.startswith("gallery/"):
        return
    folder = DOCS
    if page in ELSEWHERE:
        file = ROOT / ELSEWHERE[page]
        app.env.note_dependency(str(file))
        source[0] = SOURCE.sub(lambda _: file.read_text("utf-8"), source[0], count=1)
        folder = file.parent
    source[0] = PICTURE.sub(both_themes, relink(source[0], folder))


def setup(app: Sphinx) -> None:
    app.connect("source-read", read_page)
