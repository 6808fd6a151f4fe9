"""Each kind of stored document, written by a build whose formats are one version higher, is refused on reading.

headrace's tables are tested in tests/infra/postgres/test_table_format.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from consumers.delivery import dead_letter_topic
from consumers.repositories.base import Base, shared_base, write_base
from consumers.repositories.storage import Root
from infra.schema_registry import topic_registry
from infra.settings.file import load_settings
from infra.stack import background
from infra.state.positions import StrayState, decode, encode
from schemas import formats
from schemas.avro import FORMAT_PROPERTY, key_schema, value_schema
from schemas.errors import SettingsError
from schemas.events import Column, Relation
from schemas.formats import NewerFormat, OlderFormat

STRAY = StrayState(source="main", table="public.t", gitlab_schema="gitlab_main", since_ms=1)
RELATION = Relation(1, "public", "t", "d", (Column("id", 20),), ("id",))

Write = Callable[[Path], Callable[[], object]]
"""Writes something into an empty directory or into memory, and returns a function that reads it back."""


class Letter:
    """A Kafka message of the dead letters topic, as it was written."""

    def __init__(self) -> None:
        self.format = str(formats.DEAD_LETTERS.version).encode()

    def headers(self) -> list[tuple[str, bytes]]:
        return [(dead_letter_topic.FORMAT_HEADER, self.format)]

    def timestamp(self) -> tuple[int, int]:
        return 1, 0

    def value(self) -> bytes:
        return b""


def positions(folder: Path) -> Callable[[], object]:
    value = encode(STRAY)
    return lambda: decode(StrayState, "main///public.t", value)


def schemas(folder: Path) -> Callable[[], object]:
    value = json.dumps(formats.SCHEMAS.write({"subject": "t-value", "schema": "{}"})).encode()
    return lambda: topic_registry._entry(value, "record 1 of topic p.schemas")


def events(folder: Path) -> Callable[[], object]:
    schema = value_schema(RELATION, "gitlab_main")
    return lambda: topic_registry.readable(schema, 7)


def dead_letters(folder: Path) -> Callable[[], object]:
    letter: Any = Letter()
    return lambda: dead_letter_topic._entry(b"main/t/0/5/1", letter)


def moves(folder: Path) -> Callable[[], object]:
    old, new = (Root(folder / name).copy("x") for name in ("a", "b"))
    for each in (old, new):
        each.path.mkdir(parents=True)
    write_base(new.path, old.path, Base({}, {}))
    return lambda: shared_base(old, new)


def stacks(folder: Path) -> Callable[[], object]:
    record = background.Record("127.0.0.1:1", "postgresql://", str(folder), {})
    background.write_private(folder / background.RECORD, formats.STACKS.write(asdict(record)))
    return lambda: background.read_record(folder)


def settings(folder: Path) -> Callable[[], object]:
    file = folder / "headrace.toml"
    file.write_text(f"format = {formats.SETTINGS.version}\n")
    return lambda: load_settings(file)


KINDS = (positions, schemas, events, dead_letters, moves, stacks, settings)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_every_kind_of_document_is_tested() -> None:
    assert {kind.__name__ for kind in KINDS} == formats.every().keys() - {"tables"}


def test_document_of_this_version_is_read(kind: Write, tmp_path: Path) -> None:
    assert kind(tmp_path)() is not None


def test_document_of_a_newer_version_is_refused_by_name(
    kind: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = kind.__name__
    with monkeypatch.context() as newer:
        before = formats.every()[name]
        newer.setattr(formats, name.upper(), replace(before, version=before.version + 1))
        read = kind(tmp_path)
    with pytest.raises(NewerFormat, match=rf"has format {before.version + 1}.*reads {before.what} up to format"):
        read()


def test_events_of_the_format_before_are_refused_by_readers_and_by_the_producer() -> None:
    key, value = key_schema(RELATION, "gitlab_main", ["id"]), value_schema(RELATION, "gitlab_main")
    older = value | {FORMAT_PROPERTY: 1}
    with pytest.raises(OlderFormat, match=r"schema 7 has format 1; .* from format 2 on"):
        topic_registry.readable(older, 7)
    with pytest.raises(OlderFormat, match="the schema of t-value has format 1"):
        topic_registry.refuse_incompatible("t-value", older, value)
    assert topic_registry.readable(key, 8) is key


@pytest.mark.parametrize("mark", ['"1"', "0", "true", "1.5", "[1]"])
def test_settings_file_with_an_invalid_format_is_a_settings_error(mark: str, tmp_path: Path) -> None:
    file = tmp_path / "headrace.toml"
    file.write_text(f"format = {mark}\n")
    with pytest.raises(
        SettingsError, match="format must be a whole number, 1 or more; set it to 1, or remove it, which means 1"
    ):
        load_settings(file)
