"""Checks whether a table's new events may follow its old ones in one topic.

The rule is the registry's BACKWARD (a reader of the new schema reads records of the old one; Avro specification,
"Schema Resolution"), specialised to headrace's envelopes and keys: columns may be added and dropped, since each may be
null, and integers may become wider; a key may not change at all, since the same row would get another key.
"""

from __future__ import annotations

from typing import Any, Final

from schemas.avro import columns_of, row_record, type_name
from schemas.column_types import Schema

_LOSSLESS: Final = {("int", "long"), ("int", "double"), ("float", "double")}
"""Avro's promotions that preserve every value: a long read as a double does not, nor bytes as text."""

_COLUMN_WORDS: Final = {
    "int": "integer",
    "long": "bigint",
    "float": "real",
    "double": "double precision",
    "string": "text",
    "uuid": "uuid",
    "date": "date",
    "time-micros": "time",
    "timestamp-micros": "timestamp with time zone",
    "local-timestamp-micros": "timestamp",
}


def describe(avro: Any) -> str:
    """Return a column's type by PostgreSQL's name; for a union, that of its first branch that is not null."""
    if isinstance(avro, list):
        return describe(next((branch for branch in avro if branch != "null"), "null"))
    logical = avro.get("logicalType") if isinstance(avro, dict) else None
    if logical == "decimal":
        return f"numeric({avro['precision']},{avro.get('scale', 0)})"
    name = logical or type_name(avro)
    return _COLUMN_WORDS.get(name, name)


def _branches(avro: Any) -> list[Any]:
    return avro if isinstance(avro, list) else [avro]


def _logical(avro: Any) -> tuple[Any, Any]:
    """Return the logical type and its scale; a decimal's precision may only grow, see `_readable`."""
    if not isinstance(avro, dict):
        return None, None
    return avro.get("logicalType"), avro.get("scale")


def _readable(old: Any, new: Any) -> bool:
    """Whether a value written with `old` reads the same with `new`; neither is a union."""
    names = type_name(old), type_name(new)
    if _logical(old) != _logical(new):
        # A uuid may become text, but not text a uuid.
        return names == ("string", "string") and _logical(new) == (None, None)
    if _logical(old)[0] == "decimal":
        return bool(old["precision"] <= new["precision"])
    return names[0] == names[1] or names in _LOSSLESS


def _same(old: Schema, new: Schema) -> list[str]:
    """Return the differences of two keys."""
    before = {name: field["type"] for name, field in zip(columns_of(old), old["fields"], strict=True)}
    after = {name: field["type"] for name, field in zip(columns_of(new), new["fields"], strict=True)}
    if list(before) != list(after):
        return [f"key: {', '.join(before)} → {', '.join(after)}"]
    return [
        f"key column {name}: {describe(before[name])} → {describe(after[name])}"
        for name in before
        if before[name] != after[name]
    ]


def _row_of(schema: Schema) -> Schema | None:
    names = [field["name"] for field in schema["fields"]]
    return row_record(schema) if {"op", "source", "before", "after"} <= set(names) else None


def incompatibilities(old: Schema, new: Schema) -> list[str]:
    """Return the reasons why `new` may not follow `old`, a sentence each; empty if it may.

    Both are value schemas, or both key schemas, of a table, as created by `schemas.avro` or read back from a registry.
    """
    old_row, new_row = _row_of(old), _row_of(new)
    if old_row is None or new_row is None:
        return _same(old, new)
    found = []
    if _envelope(old) != _envelope(new):
        found.append("envelope: written by another version of headrace")
    before = {name: field["type"] for name, field in zip(columns_of(old_row), old_row["fields"], strict=True)}
    for name, field in zip(columns_of(new_row), new_row["fields"], strict=True):
        if name not in before:
            continue
        written, read = _branches(before[name]), _branches(field["type"])
        if not all(any(_readable(was, now) for now in read) for was in written):
            found.append(f"column {name}: {describe(before[name])} → {describe(field['type'])}")
    return found


def _envelope(schema: Schema) -> list[Any]:
    """Return the fields around the row, which are headrace's own."""
    return [field for field in schema["fields"] if field["name"] not in ("before", "after")]
