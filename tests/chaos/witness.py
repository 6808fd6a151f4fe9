"""Reads commits and ledger moves from the WAL, through the harness's own slot instead of headrace's.

A trigger could report ledger moves too, but headrace refuses triggers on its own schema.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import psycopg

from schemas.positions import Lsn

_SLOT: Final = "witness"
"""Also the publication's name."""
_MAKE: Final = (
    f"CREATE PUBLICATION {_SLOT} FOR TABLES IN SCHEMA history",
    f"SELECT FROM pg_create_logical_replication_slot('{_SLOT}', 'pgoutput')",
)
_FOLLOW_LEDGER: Final = f"ALTER PUBLICATION {_SLOT} ADD TABLE headrace.progress"
_READ: Final = """
    SELECT data FROM pg_logical_slot_peek_binary_changes(%(slot)s::name, NULL, NULL,
                                                         'proto_version', '1', 'publication_names', %(slot)s::text)
     WHERE get_byte(data, 0) = ascii('B')
        OR get_byte(data, 0) IN (ascii('I'), ascii('U'))
       AND substr(data, 2, 4) = int4send('headrace.progress'::regclass::oid::bigint::int)
"""
_COLUMNS: Final = """
    SELECT attname::text FROM pg_attribute
     WHERE attrelid = 'headrace.progress'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""


class Move(NamedTuple):
    """A move of a migration's ledger in one partition; `old` is None for its first row."""

    xid: int
    partition: int
    old: int | None
    new: int
    run: int = 1


@dataclass
class Witness:
    """Transaction → its commit position; migration → the moves of its ledger, in commit order."""

    commits: dict[int, Lsn] = field(default_factory=dict)
    moves: dict[str, list[Move]] = field(default_factory=lambda: defaultdict(list))


def begin(connection: psycopg.Connection[Any]) -> None:
    """Witness every commit that writes the history from now on."""
    for statement in _MAKE:  # in separate transactions: one that has written cannot create a slot
        connection.execute(statement.encode())


def follow_ledger(connection: psycopg.Connection[Any]) -> None:
    """Witness every move of the ledger from now on."""
    connection.execute(_FOLLOW_LEDGER.encode())


def read(connection: psycopg.Connection[Any]) -> Witness:
    """Return everything witnessed so far; the slot keeps it."""
    found = Witness()
    columns = [name for (name,) in connection.execute(_COLUMNS)]
    reached: dict[tuple[str, str], int] = {}
    xid = 0
    with connection.cursor(binary=True) as cursor:
        for (data,) in cursor.stream(_READ, {"slot": _SLOT}):
            if data[:1] == b"B":  # the commit's position, its time, and the transaction's id
                xid = int.from_bytes(data[17:21], "big")
                found.commits[xid] = Lsn(int.from_bytes(data[1:9], "big"))
                continue
            row = dict(zip(columns, _new_row(data), strict=True))
            place = row["migration"], row["partition"]
            before, now = reached.get(place), int(row["next_offset"])
            if now != before:
                found.moves[row["migration"]].append(Move(xid, int(row["partition"]), before, now, int(row["run"])))
                reached[place] = now
    return found


def _new_row(data: bytes) -> Sequence[str]:
    """Return the texts of the new row of an insert or update; an old key may precede it."""
    at = 5
    while True:
        new = data[at : at + 1] == b"N"
        values, at = _row(data, at + 1)
        if new:
            return values


def _row(data: bytes, at: int) -> tuple[list[str], int]:
    count = int.from_bytes(data[at : at + 2], "big")
    at += 2
    values = []
    for _ in range(count):
        kind = data[at : at + 1]
        at += 1
        text = ""
        if kind == b"t":
            end = at + 4 + int.from_bytes(data[at : at + 4], "big")
            text, at = data[at + 4 : end].decode(), end
        values.append(text)
    return values, at
