"""Sphinx's settings for the site: `make docs` writes it into build/site."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from sphinx.application import Sphinx

project = "headrace"
html_title = "headrace"
html_theme = "furo"
root_doc = "README"
extensions = ["myst_parser"]
exclude_patterns = ["LICENSE"]
# An option outside of code keeps its two hyphens.
smartquotes = False
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
# The summaries are fetched, which a browser refuses for files.
html_show_search_summary = False
# Such as the `{role}` of SQL that is a template.
suppress_warnings = ["misc.highlighting_failure"]
# As GitLab and GitHub name them.
myst_heading_anchors = 4

_LINK = re.compile(r"\]\(([\w/-]+)\.md\)")


def setup(app: Sphinx) -> None:
    """Add what makes an index of docs/README.md, which is a page of its own on GitLab and GitHub."""
    app.connect("source-read", _navigation)
    app.connect("build-finished", _index)


def _navigation(app: Sphinx, name: str, source: list[str]) -> None:
    """Make the sidebar of the index's table: a part for each of its bold rows, with the pages below it."""
    if name != app.config.root_doc:
        return
    for part in re.split(r"^\| \*\*", source[0].partition("## ")[0], flags=re.MULTILINE)[1:]:
        caption = part.partition("**")[0]
        pages = "\n".join(dict.fromkeys(_LINK.findall(part)))
        source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{pages}\n```\n"


def _index(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.name == "html":
        site = Path(app.outdir)
        shutil.copy(site / "README.html", site / "index.html")
