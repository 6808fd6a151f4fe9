"""Reads the fenced blocks of the documents, and what a comment says of the block below it.

Each block is run, parsed, or has a comment right above it:

    <!-- not run: REASON -->       what this machine, or a test, cannot do
    <!-- run by: tests/… -->       a test with a world of its own runs it
    <!-- file: PATH -->            its text is a file that the page's commands use

A comment of several lines that begins with `run` has commands that prepare the page's next ones, and are not shown:

    <!-- run
    headrace produce main
    -->

python -m tests.docs lists the blocks that are not run, with their reasons.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).parents[2]
_BLOCK: Final = re.compile(
    r"^(?P<indent> *)```(?P<language>[^\n]*)\n(?P<text>.*?)^(?P=indent)```$|^ *<!-- (?P<comment>.*?)\s*-->$",
    re.MULTILINE | re.DOTALL,
)
COMMANDS: Final = ("sh", "console")
"""Languages of blocks that are run; `console` shows what the commands print."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block, or the commands of a comment; `line` is that of its first line, counted from 1."""

    page: str
    line: int
    language: str
    text: str
    not_run: str = ""
    run_by: str = ""
    file: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_run(self) -> bool:
        """Whether the page's own commands include it."""
        return self.language in COMMANDS and not self.not_run and not self.run_by


def pages() -> list[Path]:
    """Return every page: the documents, and those of the checkout itself."""
    return [
        CHECKOUT / "README.md",
        *sorted((CHECKOUT / ".github").glob("*.md")),
        *sorted(CHECKOUT.glob("docs/**/*.md")),
    ]


def name(page: Path) -> str:
    """Return a page's path within the checkout."""
    return str(page.relative_to(CHECKOUT))


def without_blocks(page: Path) -> str:
    """Return a page's text without its blocks."""
    return re.sub(r"^( *)```.*?^\1```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> Iterator[Block]:
    """Yield a page's blocks in its order."""
    text = page.read_text(encoding="utf-8")
    said: dict[str, str] = {}
    end = 0
    for found in _BLOCK.finditer(text):
        if text[end : found.start()].strip():
            said = {}  # a comment is about the block right below it
        end = found.end()
        line = text.count("\n", 0, found.start()) + 2
        comment = found["comment"]
        if comment is None:
            yield Block(name(page), line, found["language"], textwrap.dedent(found["text"]), **said)
            said = {}
        elif comment.startswith("run\n"):
            yield Block(name(page), line, "sh", comment.removeprefix("run\n") + "\n")
        else:
            said |= dict(_mark(comment))


def _mark(comment: str) -> Iterator[tuple[str, str]]:
    what, _, said = " ".join(comment.split()).partition(": ")
    if what in ("not run", "run by", "file"):
        yield what.replace(" ", "_"), said
    elif what == "sql":
        yield "run_by", "tests/producers/switchover/ends.py"


def every_block() -> Iterator[Block]:
    """Yield the blocks of every page."""
    for page in pages():
        yield from blocks(page)
