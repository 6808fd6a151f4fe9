"""Formats of stored documents: newer ones are refused, older ones upgraded."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from schemas import formats
from schemas.errors import Malformed
from schemas.formats import PROGRAM, Format, NewerFormat, OlderFormat


def test_document_comes_back_without_its_mark() -> None:
    made = Format("notes").write({"a": 1})
    assert made == {"a": 1, "format": 1, "written_by": PROGRAM}
    assert Format("notes").read(made, "note 7") == {"a": 1}


def test_document_without_a_mark_has_the_first_format() -> None:
    assert Format("notes").read({"a": 1}, "note 7") == {"a": 1}


def test_newer_document_is_refused_with_place_writer_and_remedy() -> None:
    newer = replace(Format("notes"), version=3).write({"a": 1}) | {"written_by": "9.1"}
    with pytest.raises(NewerFormat) as refused:
        Format("notes", 2, {1: dict}).read(newer, "note 7")
    assert refused.value.exit_code == 3
    assert str(refused.value) == (
        f"note 7 has format 3, written by headrace 9.1; this is headrace {PROGRAM}, which reads notes up to format 2;"
        " Run the version of headrace that wrote it, or a later one; nothing was changed."
    )


def test_older_document_takes_each_step_in_order() -> None:
    def rename(old: dict[str, Any]) -> dict[str, Any]:
        return {"b": old["a"]}

    def double(old: dict[str, Any]) -> dict[str, Any]:
        return {"b": old["b"] * 2}

    third = Format("notes", 3, {1: rename, 2: double})
    assert third.read({"a": 5, "format": 1}, "note 7") == {"b": 10}
    assert third.read({"b": 5, "format": 2}, "note 7") == {"b": 10}
    assert third.read(third.write({"b": 5}), "note 7") == {"b": 5}


def test_document_older_than_the_oldest_readable_format_is_refused_with_the_remedy() -> None:
    notes = Format("notes", 3, {2: dict}, oldest=2)
    assert notes.read({"a": 1, "format": 2}, "note 7") == {"a": 1}
    with pytest.raises(OlderFormat) as refused:
        notes.read({"a": 1}, "note 7")
    assert refused.value.exit_code == 3
    assert str(refused.value) == (
        f"note 7 has format 1; this is headrace {PROGRAM}, which reads notes from format 2 on;"
        " Produce these topics again, under another prefix or after deleting them; nothing was changed."
    )


@pytest.mark.parametrize(
    "broken", [None, [], "x", 5, {"format": "1"}, {"format": 0}, {"format": True}, {"format": 1.0}]
)
def test_invalid_document_is_malformed_with_its_name(broken: object) -> None:
    with pytest.raises(Malformed, match="note 7"):
        Format("notes").read(broken, "note 7")


def test_every_format_has_the_steps_from_the_first_one() -> None:
    for name, found in formats.every().items():
        if name != "tables":  # whose steps are files, see tests/infra/postgres/test_table_format.py
            assert sorted(found.upgrades) == list(range(found.oldest, found.version))


def test_documentation_lists_every_format_with_its_version() -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/upgrading.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \|.*\| (\d+) \|$", page, re.MULTILINE)
    assert dict(listed) == {name: str(found.version) for name, found in formats.every().items()}
