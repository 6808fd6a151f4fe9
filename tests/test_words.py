"""The lint of words finds each word of the dialect wherever an operator or a reader would meet it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import words

SAMPLES = (
    "parked", "sifting", "guardian", "suffers", "is well", "holds back", "anew", "goes on", "in vain", "nobody",
    "a person", "is told", "stands", "beside", "members", "right already", "is none",
)  # fmt: skip


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    file = tmp_path / "words_allowed.toml"
    file.write_text("allowed = []", encoding="utf-8")
    return file


def found_in(root: Path, allowed: Path, name: str, text: str) -> list[tuple[int, str]]:
    place = root / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text, encoding="utf-8")
    return [(each.line, each.word) for each in words.search(root, allowed)]


def test_every_pattern_finds_its_sample() -> None:
    unmatched = [word for word, pattern in zip(SAMPLES, words.PATTERNS, strict=True) if not pattern[0].search(word)]
    assert unmatched == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("producers/a.py", 'raise SystemExit(f"{1} event is parked")'),
        ("consumers/a.py", '"""Reads.\n\nAn event is parked.\n"""'),
        ("infra/a.py", "number = 1  # parked"),
        ("infra/a.toml", "# parked"),
        ("infra/a.sql", "SELECT parked"),
        ("docs/how-to/a.md", "It is parked."),
        ("README.md", "It is parked."),
    ],
)
def test_a_word_is_found_in_strings_comments_and_documents(tmp_path: Path, allowed: Path, name: str, text: str) -> None:
    assert [word for _, word in found_in(tmp_path, allowed, name, text)] == ["parked"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("def test_event_is_parked() -> None: ...", 1),
        ('def test_a() -> None:\n    """One.\n\n    It is parked.\n    """', 4),
        ('A = 1\n"""Parked."""', 2),
        ("number = 1  # parked", 1),
    ],
)
def test_a_word_is_found_in_names_docstrings_and_comments_of_tests(
    tmp_path: Path, allowed: Path, text: str, line: int
) -> None:
    assert [(found, word.lower()) for found, word in found_in(tmp_path, allowed, "tests/test_a.py", text)] == [
        (line, "parked")
    ]


@pytest.mark.parametrize("text", ['assert log == "parked"', "def parked() -> None: ...", 'f"{1} is parked"'])
def test_input_and_helpers_of_tests_are_not_prose(tmp_path: Path, allowed: Path, text: str) -> None:
    assert found_in(tmp_path, allowed, "tests/test_a.py", text) == []


def test_an_identifier_is_not_prose(tmp_path: Path, allowed: Path) -> None:
    assert found_in(tmp_path, allowed, "infra/a.py", "parked = nobody = 1") == []


@pytest.mark.parametrize("first", ["What", "How", "Whether", "Where"])
def test_a_module_that_begins_with_a_question_is_found(tmp_path: Path, allowed: Path, first: str) -> None:
    assert found_in(tmp_path, allowed, "infra/a.py", f'"""{first} it is."""') == [(1, first)]


def test_a_place_is_allowed_by_its_line_and_path(tmp_path: Path, allowed: Path) -> None:
    allowed.write_text('[[allowed]]\npath = "docs/"\nword = "user nobody"\n', encoding="utf-8")
    assert found_in(tmp_path, allowed, "docs/a.md", "The user nobody runs it.\nNobody runs it.") == [(2, "Nobody")]


def test_an_entry_that_allows_nothing_is_found(tmp_path: Path, allowed: Path) -> None:
    allowed.write_text('[[allowed]]\nword = "user nobody"\n', encoding="utf-8")
    assert found_in(tmp_path, allowed, "docs/a.md", "Text.") == [(1, "user nobody")]
