"""Links between the pages, and to files of the repository, lead somewhere, as GitLab and GitHub resolve them."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.docs.blocks import CHECKOUT, name, pages, without_blocks

_LINK = re.compile(r"\]\(<?([^)\s>]+)>?\)")


def links(page: Path) -> list[str]:
    """Return the links of a page's prose; brackets in code do not count."""
    return _LINK.findall(re.sub(r"`[^`]*`", "code", without_blocks(page)))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, the second of one name with `-1`."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#+ (.+)$", without_blocks(page), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def broken(page: Path, root: Path = CHECKOUT) -> list[str]:
    """Return the links of a page that lead nowhere below `root`; those into the net are not followed."""
    wrong = []
    for link in links(page):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.is_relative_to(root) or not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("page", pages(), ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page) == []


def test_every_page_is_listed_by_the_index() -> None:
    index = CHECKOUT / "docs" / "README.md"
    listed = {(index.parent / link.partition("#")[0]).resolve() for link in links(index)}
    assert [name(each) for each in pages() if each.is_relative_to(index.parent) and each not in {*listed, index}] == []


def test_link_to_a_heading_or_file_that_is_gone_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# Title\n\n## `code`, twice\n\n## `code`, twice\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md#title) [b](other.md#code-twice-1) [c](other.md#gone) [d](gone.md) `[e](gone)` [f](#no)"
    )
    assert broken(page, tmp_path) == ["other.md#gone", "gone.md", "#no"]
