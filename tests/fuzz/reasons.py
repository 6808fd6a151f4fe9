"""Reasons for which headrace stops a table or refuses a start, as patterns of their whole text.

Each is documented in docs/reference/events.md or docs/how-to/recovery.md for one kind of change. A change justifies
only its own reasons, with its own column and table.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

ANY: Final = None
"""A part of a reason that a change cannot know, such as a name given by a later change."""

_EVERY_STOPPED: Final = re.compile(r"every table of main is stopped \((.*)\)", re.DOTALL)
_FIRST_FINDING: Final = re.compile(r"source main: (.*?)(?: \(and \d+ more: see `headrace check`\))?", re.DOTALL)


def reason(template: str, *parts: str | None) -> str:
    """Return the pattern of a reason: `template` with its {} filled by `parts`, as they are."""
    literal = template.split("{}")
    filled = [".+" if part is ANY else re.escape(part) for part in parts]
    assert len(literal) == len(filled) + 1
    return "".join(re.escape(text) + part for text, part in zip(literal, [*filled, ""], strict=True))


def is_one_of(text: str, patterns: Collection[str]) -> bool:
    """Whether the whole text is one of the reasons."""
    return any(re.fullmatch(pattern, text, re.DOTALL) for pattern in patterns)


def reasons_of(problem: str, tables: Collection[str]) -> list[tuple[str | None, str]]:
    """Return what a refused start blames, as (table, reason); the table is None if the reason contains it."""
    if (found := _EVERY_STOPPED.fullmatch(problem)) is not None:
        blamed = found[1]
        places = sorted(
            (match.start(), table)
            for table in tables
            for match in re.finditer(rf"(?:^|(?<=; )){re.escape(table)}: ", blamed)
        )
        ends = [place for place, _ in places[1:]] + [len(blamed) + 2]
        return [
            (table, blamed[place + len(table) + 2 : end - 2]) for (place, table), end in zip(places, ends, strict=True)
        ]
    found = _FIRST_FINDING.fullmatch(problem)
    return [(None, found[1] if found is not None else problem)]


def other_type(column: str) -> tuple[str, ...]:
    """Reasons for a column whose type changed to one that cannot be followed."""
    return (
        reason("column {} changed its type, so its values in the topic no longer match", column),
        reason("{}-value changed incompatibly: column {}: {}", ANY, column, ANY),
    )


def copied_since(column: str, new: str) -> str:
    """Reason for a table copied after a column got the type `new`, while an earlier change is still to come."""
    return reason("{}-value changed incompatibly: column {}: {} → {}", ANY, column, new, ANY)


def other_key_type(column: str) -> tuple[str, ...]:
    return (
        *other_type(column),
        reason("key column {} changed its type", column),
        reason("{}-key changed incompatibly: key column {}: {}", ANY, column, ANY),
    )


SORTS_OTHERWISE: Final = reason("its key ({}) sorts differently than when its snapshot began", ANY)


def renamed_column(old: str) -> tuple[str, ...]:
    """Reasons for a table with a column called `old` in its last records or in a change that is still to come."""
    return (reason("column {} was renamed to {}", old, ANY), had_column(old))


def had_column(gone: str) -> str:
    """Reason for a table copied after a column was dropped, while an earlier change is still to come."""
    return reason("a change in the stream has column {} in place of {}: one may be a rename of the other", gone, ANY)


def no_key(table: str) -> tuple[str, ...]:
    """Reasons for a table that no longer has a unique index over its key columns."""
    return (
        reason("table {} has neither a primary key nor a replica identity index", table),
        reason("the key ({}) of table {} has no unique index over NOT NULL columns{}", ANY, table, ANY),
        reason("its key ({}) no longer has a unique index over NOT NULL columns", ANY),
        reason("its primary key changed from ({}) to ({})", ANY, ANY),
    )


def key_column_gone(table: str, column: str) -> tuple[str, ...]:
    """Reasons for a table with a renamed or dropped key column."""
    return (
        reason("the stream has a change from before key column {} was given this name", ANY),
        reason("key column {} no longer exists", column),
        reason("its key ({}) no longer has a unique index over NOT NULL columns", ANY),
        reason("table {} no longer has key column {}", table, column),
        reason("table {} lacks a column of its key ({})", table, ANY),
    )


_REFUSED: Final = "PostgreSQL refuses every UPDATE and DELETE of it while it is published"


def no_identity(table: str, columns: Collection[str]) -> tuple[str, ...]:
    """Reasons for a table whose deletes do not contain its key."""
    every = reason("its replica identity leaves out every column: {}", _REFUSED)
    return (
        *_of_table(table, every),
        *(reason("its replica identity leaves out key column {}", column) for column in columns),
        *(reason("the replica identity of table {} leaves out key column {}", table, column) for column in columns),
    )


def partition_without_identity(table: str, columns: Collection[str]) -> tuple[str, ...]:
    """Reasons for a table with a partition whose deletes do not contain its key."""
    every = reason("the replica identity of its partition {} leaves out every column: {}", ANY, _REFUSED)
    named = (
        reason("the replica identity of its partition {} leaves out key column {}", ANY, column) for column in columns
    )
    return (*_of_table(table, every), *(each for obstacle in named for each in not_followed(table, obstacle)))


def virtual_in_identity(table: str, columns: Collection[str]) -> tuple[str, ...]:
    """Reasons for a table or partition whose replica identity is full and has a virtual generated column."""
    end = "is full and includes virtual generated column {}: {}"
    found = [reason(f"its replica identity {end}", column, _REFUSED) for column in columns]
    found += [reason(f"the replica identity of its partition {{}} {end}", ANY, column, _REFUSED) for column in columns]
    return tuple(each for obstacle in found for each in _of_table(table, obstacle))


def _of_table(table: str, obstacle: str) -> tuple[str, str]:
    """Return the reason as for a stopped table, and as for a start refused for it."""
    return obstacle, reason("table {}: ", table) + obstacle


def gone(table: str) -> tuple[str, ...]:
    """Reasons for a table that was dropped, moved or replaced."""
    return (
        reason("it was renamed to {}", ANY),
        reason("it was dropped"),
        reason("it was dropped, and another table has its name"),
        reason("table {} no longer exists", table),
        reason("databases.main.tables names {}, but the database has no such ordinary table", table),
    )


TAKEN_OUT: Final = reason("it was removed from the publication")
"""For a table that is not fully published."""
EDITED: Final = reason("the publication was altered for it, perhaps temporarily: changes made meanwhile may be missing")


def taken_out_since(table: str) -> str:
    return reason("topic {} has records, but table {} was removed from the publication since", ANY, table)


def publication(what: str) -> str:
    """Reason for a source whose publication another session dropped, recreated or altered."""
    return reason("publication headrace of main {}{}", what, ANY)


def unlogged(partition: str) -> str:
    return reason("its partition {} is unlogged, so its changes are not in the WAL", partition)


def not_followed(table: str, obstacle: str) -> tuple[str, ...]:
    """Reasons for a table with a partition that cannot be followed."""
    return obstacle, reason("table {} cannot be followed: ", table) + obstacle


def hidden(table: str | None) -> tuple[str, ...]:
    """Reasons to refuse a start that has to copy a table without the right to read it."""
    return (
        reason("table {} may not be read by this role", table),
        reason("table {} has row security, which hides rows from this role", table),
    )


def not_validated(table: str, columns: Collection[str]) -> tuple[str, ...]:
    """Reasons for a table whose key may be null in old rows."""
    template = "key column {} of table {} has a NOT NULL constraint that is NOT VALID: {}"
    return tuple(reason(template, column, table, "rows may have null there") for column in columns)


TWO_PHASE: Final = reason("slot {} was created with two_phase and sends transactions before they commit", ANY)

AS_ONE: Final = reason("it was published via its root (publish_via_partition_root) for a while")


def without_text(table: str, column: str, bytes_: str, encoding: str) -> tuple[str, ...]:
    """Reasons for a table with a value that has `bytes_` (in hexadecimal), which have no UTF-8 text."""
    prefix = f"{table}: a value of column {column} "
    shown = " ".join(f"0x{byte:02x}" for byte in bytes.fromhex(bytes_))
    if encoding == "SQL_ASCII":
        unknown = "has bytes that are not UTF-8, and its database (SQL_ASCII) does not record their encoding"
        read = f'invalid byte sequence for encoding "UTF8": {shown}'
        return (
            reason("{}", prefix + unknown),
            reason("PostgreSQL cannot read its rows: {} (SQLSTATE 22021)", read),
            reason("PostgreSQL cannot read its rows: {} {} (SQLSTATE 22021)", read, ANY),  # the bytes after it
        )
    none = f"has bytes {bytes.fromhex(bytes_).hex(' ')}, which are not a character in {encoding}"
    read = f'character with byte sequence {shown} in encoding "{encoding}" has no equivalent in encoding "UTF8"'
    return reason("{}", prefix + none), reason("PostgreSQL cannot read its rows: {} (SQLSTATE 22P05)", read)


SLOW_START: Final = reason("PostgreSQL at {} was too slow to start a session: {}", ANY, ANY)
"""A role's statement_timeout, in force until a session sets its own: no act's, and gone next time."""
