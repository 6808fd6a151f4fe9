"""Generates the functions that encode one table's stream rows, with an expression per column.

In the source `n3` and `o3` are the texts of the fourth column in the new and the old row. It consists of column numbers
and constants of this module: no name or value from outside gets into it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

from schemas.column_types import ColumnType, Kind
from schemas.events import UNCHANGED
from schemas.values import (
    NULL,
    SMALL,
    START,
    LengthMemo,
    LongMemo,
    Memo,
    quick_encoder,
)
from schemas.varints import FINAL, encode_long

Functions = dict[str, Callable[..., Any]]
"""The compiled `key`, `change`, `update` and `delete`; see Encoder for what each takes and returns."""

REJECTIONS: Final = (ValueError, OverflowError, TypeError, AttributeError, KeyError)
"""The errors of encoding code for a value that is not of its type."""

_REPEATING: Final = {Kind.BOOLEAN, Kind.DATE, Kind.TIMESTAMP, Kind.TIMESTAMPTZ, Kind.DECIMAL}
"""Kinds whose values are worth a memo in the stream: the timestamps of a transaction are mostly equal."""

_FUNCTION: Final = """\
def {name}({parameters}):
    try:
{unpacking}        return {result}
    except REJECTIONS:
        pass
    raise blame({blamed})
"""


def _encode_text(text: bytes) -> bytes:
    return encode_long(len(text)) + text


def _cell(column: ColumnType, index: int, row: str) -> str:
    """Return the expression of a value; null and UNCHANGED make it raise one of REJECTIONS."""
    text = f"{row}{index}"
    if column.kind is Kind.TEXT:
        return f"LENGTHS[len({text})] + {text}"
    if column.kind in (Kind.INT, Kind.LONG):
        # The short cut handles unsigned values that fit 28 bits and the type; E handles the others.
        limit = min(1 << 28, (column.high + 1) << 1)
        return (
            f"E{index}({text}) if not {text}.isdigit() or (z := int({text}) << 1) >= {limit} "
            f"else START[z & 16383] + FINAL[z >> 14] if z >= 16384 else SMALL[z]"
        )
    return f"E{index}({text})"


def _nullable_cell(column: ColumnType, index: int, row: str) -> str:
    text = f"{row}{index}"
    if column.kind in _REPEATING:
        return f"M{index}[{text}]"
    if column.toastable:
        return f"({_cell(column, index, row)} if {text}.__class__ is BYTES else ABSENT[{text}])"
    return f"(NULL if {text} is None else {_cell(column, index, row)})"


def _key(types: Sequence[ColumnType], key: Sequence[int], row: str) -> str:
    """Return the expression of the key; it assigns the cells shared with the row to `k0`, `k1` …"""
    parts = [
        f"KEY_TEXT({row}{index})" if types[index].partial else f"(k{index} := {_cell(types[index], index, row)})[1:]"
        for index in key
    ]
    return f"HEADER + {parts[0]}" if len(parts) == 1 else f"J((HEADER, {', '.join(parts)}))"


def _function(name: str, parameters: str, rows: Sequence[str], width: int, result: str) -> str:
    unpacking = "".join(f"        {''.join(f'{row[0]}{index}, ' for index in range(width))}= {row}\n" for row in rows)
    blamed = ", ".join(rows)
    return _FUNCTION.format(name=name, parameters=parameters, unpacking=unpacking, result=result, blamed=blamed)


def compile_functions(
    types: Sequence[ColumnType],
    key: Sequence[int],
    lacking: Collection[int],
    constants: dict[str, Any],
) -> Functions:
    """Return the functions for rows of `types`.

    `key` has the key columns' indexes, `lacking` those that an old row does not have. `constants` are
    `HEADER`, the bytes before a key; `LACKING`, the array with the lacking columns' names; `unchanged(new)`,
    which makes that array for a new row with UNCHANGED in it; and `blame(*rows)`, which returns the error for
    rows that could not be encoded.
    """
    scope: dict[str, Any] = {
        **constants,
        "J": b"".join,
        "U": UNCHANGED,
        "BYTES": bytes,
        "NULL": NULL,
        "ABSENT": {None: NULL, UNCHANGED: NULL},
        "START": START,
        "SMALL": SMALL,
        "FINAL": FINAL,
        "LENGTHS": LengthMemo(),
        "LONGS": LongMemo(),
        "KEY_TEXT": _encode_text,
        "REJECTIONS": REJECTIONS,
    }
    for index, column in enumerate(types):
        exact = quick_encoder(column)
        scope[f"E{index}"] = exact
        kept: dict[object, bytes] = {None: NULL}
        if column.toastable:
            kept[UNCHANGED] = NULL
        scope[f"M{index}"] = Memo(exact, kept)
    exec(compile(_source(types, key, lacking), "<rows of a relation>", "exec"), scope)  # noqa: S102
    return {name: scope[name] for name in ("key", "change", "update", "delete")}


def _source(types: Sequence[ColumnType], key: Sequence[int], lacking: Collection[int]) -> str:
    """Return the Python source of the functions."""
    shared = {index for index in key if not types[index].partial}
    width = len(types)

    def cells(row: str, *, keyed: bool) -> str:
        return ", ".join(
            f"k{index}"
            if keyed and index in shared
            else "NULL"
            if row == "o" and index in lacking
            else _nullable_cell(column, index, row)
            for index, column in enumerate(types)
        )

    toastable = [f"n{index} is U" for index in range(width) if types[index].toastable and index not in key]
    missing = f"unchanged(new) if {' or '.join(toastable)} else NULL" if toastable else "NULL"
    head = f"prefix, LONGS[ordinal], LONGS[ts_ms], {missing}"
    new, old = cells("n", keyed=True), cells("o", keyed=False)
    new_key, old_key = _key(types, key, "n"), _key(types, key, "o")
    return "\n".join(
        (
            _function("key", "new", ["new"], width, new_key),
            _function(
                "change",
                "prefix, ordinal, ts_ms, new",
                ["new"],
                width,
                f"{new_key}, J(({head}, b'\\0\\2', {new}, ))",
            ),
            _function(
                "update",
                "prefix, ordinal, ts_ms, old, new",
                ["old", "new"],
                width,
                f"{new_key}, J(({head}, b'\\2', {old}, b'\\2', {new}, ))",
            ),
            _function(
                "delete",
                "prefix, ordinal, ts_ms, old",
                ["old"],
                width,
                f"{old_key}, J((prefix, LONGS[ordinal], LONGS[ts_ms], LACKING, b'\\2', "
                f"{cells('o', keyed=True)}, b'\\0'))",
            ),
        )
    )
