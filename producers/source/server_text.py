"""Converts the stream of a database whose encoding is not UTF-8, as its server would.

If the server converts, its first character that is invalid or missing in UTF-8 ends the stream for every table. So the
stream has the server's own bytes (client_encoding SQL_ASCII), and each character is converted here after asking the
server once; a character that cannot be converted stops only its table.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import psycopg

from infra.postgres.parameters import NO_ENCODING, UTF8, encoding_of
from producers.source.table_errors import not_utf8
from schemas.errors import Malformed
from schemas.events import Relation

DOUBTFUL: Final = frozenset({"EUC_JP", "EUC_TW"})
"""Encodings with two codes for a few characters that have one in UTF-8: two keys could become equal.

Found by converting every character of each server encoding of PostgreSQL 18 there and back.
"""

_DOUBLE: Final = rb"[\x80-\xff]?[\x80-\xff]"
_CHARACTERS: Final = {
    "EUC_JP": rb"\x8f[\x80-\xff]{2}|" + _DOUBLE,
    "EUC_JIS_2004": rb"\x8f[\x80-\xff]{2}|" + _DOUBLE,
    "EUC_TW": rb"\x8e[\x80-\xff]{3}|" + _DOUBLE,
    "EUC_CN": _DOUBLE,
    "EUC_KR": _DOUBLE,
}
"""Encoding → pattern of a character above ASCII; in every other encoding it is one byte."""

_SAID: Final = """
    SELECT utf8, pg_catalog.convert_to(pg_catalog.convert_from(utf8, 'UTF8'), %(encoding)s) = %(character)s
      FROM pg_catalog.convert_to(pg_catalog.convert_from(%(character)s::bytea, %(encoding)s), 'UTF8') AS utf8
"""
"""A character in UTF-8, and whether converting it back gives the same bytes."""

Values = Sequence[Any]
"""A row of the stream; each value is bytes, None or UNCHANGED."""


def stream_encoding(connection: psycopg.Connection[Any]) -> str:
    """Return the client_encoding of a replication connection to the same database."""
    return UTF8 if encoding_of(connection) == UTF8 else NO_ENCODING


def server_text(connection: psycopg.Connection[Any]) -> ServerText | None:
    """Return the converter of the stream's text; None if that is UTF-8."""
    encoding = encoding_of(connection)
    return None if encoding == UTF8 else ServerText(connection, encoding)


class ServerText:
    """Converts text; asks the server for each character once."""

    def __init__(self, connection: psycopg.Connection[Any], encoding: str) -> None:
        self._connection = connection
        self._encoding = encoding
        self._find = re.compile(_CHARACTERS.get(encoding, rb"[\x80-\xff]"))
        self._known: dict[bytes, tuple[bytes, bool]] = {}

    def row(self, relation: Relation, values: Values, key: Sequence[int]) -> list[Any]:
        """Return the values in UTF-8; `key` are the indexes of the key's columns.

        Raises Malformed for bytes that are not text, and for a character of the key that is not unique in UTF-8.
        """
        converted = list(values)
        for place, value in enumerate(values):
            if isinstance(value, bytes) and not value.isascii():
                try:
                    converted[place] = self._utf8(value, one_to_one=place in key)
                except ValueError as error:
                    column = f"{relation.qualified_name}: a value of column {relation.columns[place].name}"
                    raise Malformed(f"{column} {error}") from None
        return converted

    def relation(self, relation: Relation) -> Relation:
        """Return the relation with its names converted; unconvertible names, never captured ones, stay as they are."""
        columns = tuple(replace(column, name=self._name(column.name)) for column in relation.columns)
        return replace(
            relation,
            schema=self._name(relation.schema),
            table=self._name(relation.table),
            columns=columns,
            identity_columns=tuple(map(self._name, relation.identity_columns)),
        )

    def _name(self, name: str) -> str:
        try:
            return self._utf8(name.encode(errors="surrogateescape")).decode()
        except ValueError:
            return name

    def _utf8(self, value: bytes, *, one_to_one: bool = False) -> bytes:
        """Return the text in UTF-8; raises ValueError."""
        if self._encoding == NO_ENCODING:
            try:
                value.decode()
            except UnicodeDecodeError:
                raise ValueError(not_utf8("")) from None
            return value

        def said(found: re.Match[bytes]) -> bytes:
            text, same = self._known.get(found[0]) or self._ask(found[0])
            if one_to_one and not same:
                raise ValueError(doubtful("", self._encoding))
            return text

        return self._find.sub(said, value)

    def _ask(self, character: bytes) -> tuple[bytes, bool]:
        try:
            row = self._connection.execute(_SAID, {"encoding": self._encoding, "character": character}).fetchone()
        except (psycopg.errors.UntranslatableCharacter, psycopg.errors.CharacterNotInRepertoire):
            raise ValueError(f"has bytes {character.hex(' ')}, which are not a character in {self._encoding}") from None
        assert row is not None
        known = self._known[character] = bytes(row[0]), bool(row[1])
        return known


def doubtful(what: str, encoding: str) -> str:
    """Return why a table stops if two of its keys could become equal in UTF-8."""
    return (
        f"{what} has a character that {encoding} encodes twice and UTF-8 once, so two keys could become equal".strip()
    )
