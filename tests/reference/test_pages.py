"""The pages of docs/reference are what the program generates."""

from __future__ import annotations

import pytest

from tests.command_tree import paths
from tests.reference.commands_page import page as commands
from tests.reference.pages import FOLDER, PAGES


@pytest.mark.parametrize("name", PAGES)
def test_page_is_what_the_program_generates(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == PAGES[name](), "run: make reference"


def test_every_command_has_a_section_with_an_example() -> None:
    sections = commands().split("\n## ")[1:]
    shown = {line for section in sections for line in section.splitlines() if line.startswith("headrace ")}
    without = [words for words in paths() if words and not any(_is_of(line, words) for line in shown)]
    assert without == []


def _is_of(line: str, words: tuple[str, ...]) -> bool:
    return line.split()[1 : len(words) + 1] == list(words)
