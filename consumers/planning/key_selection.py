"""Limits a run to selected keys, by the columns of the message key.

An operator types the values. They are first normalized to the text of their type in the key (an uppercase uuid, `t` for
true, a time in ISO form), and rejected if they are not valid for the type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from consumers.planning.key_values import KeyKind, text_of, typed
from schemas.codec.decoder import KeyDecoder
from schemas.errors import Malformed, UsageError
from schemas.wire import HEADER_BYTES, split_wire

NOT_SELECTED: Final = "not selected"
"""The skip reason of an event that the run does not select."""


class Selection:
    """Key column → values as returned by `named`; a selected key has one of them in each column.

    A truncate has no key and is not selected.
    """

    def __init__(self, wanted: Mapping[str, Sequence[str]], schemas: Callable[[int], dict[str, Any]]) -> None:
        self._wanted = {column: frozenset(values) for column, values in wanted.items()}
        self._schemas = schemas
        self._decoders: dict[bytes, KeyDecoder] = {}

    def has(self, key: object) -> bool:
        """Whether the event with this key is selected.

        An unreadable key is: the event is decided or becomes a dead letter. Raises UsageError if the key lacks a
        column.
        """
        if not isinstance(key, bytes):
            return True
        try:
            columns = self._decoder(key).decode_key(key)
        except Malformed:
            return True
        if not columns:
            return False
        for column in self._wanted.keys() - columns.keys():
            raise UsageError(f"the events have no key column {column}", remedy=f"key columns: {', '.join(columns)}")
        return all(text_of(columns[column]) in values for column, values in self._wanted.items())

    def _decoder(self, key: bytes) -> KeyDecoder:
        head = key[:HEADER_BYTES]
        if head not in self._decoders:
            self._decoders[head] = KeyDecoder(self._schemas(split_wire(key)[0]))
        return self._decoders[head]


def parse_selection(where: Sequence[str], keys: Sequence[str]) -> dict[str, list[str]]:
    """Return column → values of `--where id=1,2` options; `--keys 1,2` has the empty name, for the only column.

    A value in double quotes may have commas and leading or trailing blanks; a quote in it is doubled. The result keeps
    the quotes. An option may occur several times. Raises UsageError.
    """
    found: dict[str, list[str]] = {}
    for each in where:
        column, equals, values = each.partition("=")
        if not equals or not column.strip() or not values:
            raise UsageError(
                f"--where {each} is not COLUMN=VALUE[,VALUE…]",
                remedy='for example --where id=5,7 or --where \'name="a, b"\'; an empty string is ""',
            )
        found.setdefault(column.strip(), []).extend(_split(values, f"--where {each}"))
    if keys:
        found[""] = [value for each in keys for value in _split(each, f"--keys {each}") if value.strip()]
    return found


def named(selection: Mapping[str, Sequence[str]], key: Mapping[str, KeyKind]) -> dict[str, list[str]]:
    """Return the selection with the key's column in place of the empty name, and normalized values.

    `key` is column → kind. Raises UsageError for an unknown column, or a value invalid for the column's type.
    """
    result: dict[str, list[str]] = {}
    for column, values in selection.items():
        if not column and len(key) != 1:
            raise UsageError(f"the key has {len(key)} columns: {', '.join(key)}", remedy="use --where, not --keys")
        if column and column not in key:
            raise UsageError(f"the events have no key column {column}", remedy=f"key columns: {', '.join(key)}")
        name = column or next(iter(key))
        result.setdefault(name, []).extend(typed(name, value, key[name]) for value in values)
    return result


def _split(values: str, option: str) -> list[str]:
    """Split at commas that are not in double quotes."""
    found, value, quoted = [], "", False
    for character in values:
        if character == "," and not quoted:
            found.append(value)
            value = ""
            continue
        # A quote is special only in a value that starts with one.
        if character == '"' and value.lstrip()[:1] in ("", '"'):
            quoted = not quoted
        value += character
    if quoted:
        raise UsageError(f"{option} has an unclosed quote", remedy='write a quote inside a quoted value as ""')
    return [*found, value]
