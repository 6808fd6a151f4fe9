"""The site of `make docs`: built without a warning, complete, and searched without a network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browsing import chromium
from tests.docs.blocks import CHECKOUT

pytest.importorskip("sphinx", reason="the extra `docs` is not installed")
DOCS = CHECKOUT / "docs"
_LOADED = re.compile(r"<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)=\"([^\"]+)\"")


def build(documents: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Build the site as the Makefile does."""
    makefile = (CHECKOUT / "Makefile").read_text(encoding="utf-8")
    (options,) = re.findall(r"python -m sphinx (.*) -d build/doctrees docs build/site", makefile)
    command = [
        sys.executable,
        "-m",
        "sphinx",
        *options.split(),
        "-d",
        str(site) + ".doctrees",
        str(documents),
        str(site),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("documents") / "site"
    built = build(DOCS, made)
    assert built.returncode == 0, built.stderr
    return made


@pytest.fixture(scope="module")
def index(site: Path) -> dict[str, Any]:
    """What the search page looks words up in."""
    text = (site / "searchindex.js").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text.removeprefix("Search.setIndex(").removesuffix(")"))
    return found


@pytest.mark.long
def test_every_page_is_in_the_site_and_its_search(site: Path, index: dict[str, Any]) -> None:
    pages = {str(each.relative_to(DOCS).with_suffix("")) for each in DOCS.rglob("*.md")}
    assert set(index["docnames"]) == pages
    assert [name for name in pages if not (site / f"{name}.html").exists()] == []
    assert (site / "index.html").read_bytes() == (site / "README.html").read_bytes()


@pytest.mark.long
def test_words_lead_to_their_pages(index: dict[str, Any]) -> None:
    def pages(word: str) -> set[str]:
        found = index["terms"].get(word, [])
        return {index["docnames"][each] for each in (found if isinstance(found, list) else [found])}

    assert "reference/settings" in pages("transaction_m")
    assert "reference/errors" in pages("brokerunavail")
    assert "how-to/running" in pages("slot")
    assert pages("nowhere_in_the_documents") == set()


def test_nothing_is_loaded_from_the_net(site: Path) -> None:
    loaded = {found for page in site.rglob("*.html") for found in _LOADED.findall(page.read_text(encoding="utf-8"))}
    assert len(loaded) > 10
    assert [each for each in loaded if each.startswith(("http:", "https:", "//"))] == []
    styles = "".join(each.read_text(encoding="utf-8") for each in site.rglob("*.css"))
    assert re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", styles) == []


@pytest.fixture
def visited(site: Path) -> Iterator[Any]:
    """The search page, opened from its file in a browser without a network."""
    with chromium() as browser:
        context = browser.new_context(offline=True)
        page = context.new_page()
        page.goto((site / "search.html").as_uri() + "?q=dead+letters")
        yield page


@pytest.mark.long
def test_search_works_from_files(visited: Any) -> None:
    visited.wait_for_selector("#search-results ul.search li a")
    found = visited.eval_on_selector_all("#search-results ul.search li a", "links => links.map(each => each.href)")
    assert any("how-to/running.html" in link for link in found)
    visited.goto(found[0])
    assert visited.title()


@pytest.mark.long
@pytest.mark.parametrize("link", ["gone.md", "how-to/running.md#gone"])
def test_broken_link_fails_the_build(link: str, tmp_path: Path) -> None:
    documents = tmp_path / "docs"
    (documents / "how-to").mkdir(parents=True)
    shutil.copy(DOCS / "conf.py", documents)
    (documents / "how-to" / "running.md").write_text("# Running\n")
    index = documents / "README.md"
    index.write_text("# Index\n\n| page |\n| --- |\n| **How-to** |\n| [running](how-to/running.md) |\n")
    assert build(documents, tmp_path / "right").returncode == 0
    index.write_text(f"{index.read_text()}\n[broken]({link})\n")
    built = build(documents, tmp_path / "wrong")
    assert built.returncode != 0
    assert "xref_missing" in built.stderr
