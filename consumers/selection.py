"""Which keys a run is limited to, by the columns of the message key."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from schemas.decoder import KeyDecoder
from schemas.errors import Malformed, UsageError
from schemas.wire import HEADER_BYTES, split_wire

NOT_SELECTED: Final = "not selected"
"""The reason of an event that the run leaves out."""


class Selection:
    """Key column → the values, as text, of which the key must have one. A truncate has no key and is left out."""

    def __init__(self, wanted: Mapping[str, Sequence[str]], schemas: Callable[[int], dict[str, Any]]) -> None:
        self._wanted = {column: frozenset(values) for column, values in wanted.items()}
        self._schemas = schemas
        self._decoders: dict[bytes, KeyDecoder] = {}

    def has(self, key: object) -> bool:
        """Whether the event with this key is selected. One whose key cannot be read is: it is decided, or parked.

        Raises UsageError when the key has no such column.
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
            raise UsageError(f"the events have no key column {column}", remedy=f"there: {', '.join(columns)}")
        return all(str(columns[column]) in values for column, values in self._wanted.items())

    def _decoder(self, key: bytes) -> KeyDecoder:
        head = key[:HEADER_BYTES]
        if head not in self._decoders:
            self._decoders[head] = KeyDecoder(self._schemas(split_wire(key)[0]))
        return self._decoders[head]


def parse_selection(where: Sequence[str], keys: Sequence[str]) -> dict[str, list[str]]:
    """Return column → values of `--where id=1,2` options; `--keys 1,2` stands under the empty name: the only column.

    Raises UsageError.
    """
    found: dict[str, list[str]] = {}
    for each in where:
        column, equals, values = each.partition("=")
        if not equals or not column.strip() or not values:
            raise UsageError(f"--where {each} is not COLUMN=VALUE[,VALUE…]", remedy="for example --where id=5,7")
        found.setdefault(column.strip(), []).extend(values.split(","))
    if keys:
        found[""] = [value for each in keys for value in each.split(",") if value]
    return found


def named(selection: Mapping[str, Sequence[str]], key_columns: Sequence[str]) -> dict[str, list[str]]:
    """Return the selection with the key's own column for the empty name. Raises UsageError for a wrong column."""
    result: dict[str, list[str]] = {}
    for column, values in selection.items():
        if not column and len(key_columns) != 1:
            raise UsageError(
                f"the key has {len(key_columns)} columns: {', '.join(key_columns)}", remedy="use --where, not --keys"
            )
        if column and column not in key_columns:
            raise UsageError(f"the events have no key column {column}", remedy=f"there: {', '.join(key_columns)}")
        result.setdefault(column or key_columns[0], []).extend(values)
    return result
