"""The reasons for which headrace stops a table or refuses a start, as patterns of their whole text.

Each is what docs/events.md or docs/recovery.md names for one kind of change. A change justifies its own reasons, with
its own column and table, and no others.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

ANY: Final = None
"""A part of a reason that a change cannot know, such as the name that a later change gave."""

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
    """Return what a refused start blames: (table, reason), where the table is told apart from the reason, else None."""
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
    """Of a column that has another type, which is not one that can be followed."""
    return (
        reason("column {} changed its type, and with it the values that stand in the topic", column),
        reason("{}-value changed incompatibly: column {}: {}", ANY, column, ANY),
    )


def copied_since(column: str, new: str) -> str:
    """Of a table that was copied after a column was given the type `new`, when a change of before is still to come."""
    return reason("{}-value changed incompatibly: column {}: {} → {}", ANY, column, new, ANY)


def other_key_type(column: str) -> tuple[str, ...]:
    return (
        *other_type(column),
        reason("key column {} changed its type", column),
        reason("{}-key changed incompatibly: key column {}: {}", ANY, column, ANY),
    )


SORTS_OTHERWISE: Final = reason("its key ({}) sorts otherwise than when its copy began", ANY)


def renamed_column(old: str) -> tuple[str, ...]:
    """Of a table with a column that was called `old`, by its last records or by a change that is still to come."""
    return (reason("column {} is called {} now", old, ANY), had_column(old))


def had_column(gone: str) -> str:
    """Of a table that was copied after a column went, and of which a change of before is still to come."""
    return reason("a change in the stream has column {} in the place of {}: one may be the other, renamed", gone, ANY)


def no_key(table: str) -> tuple[str, ...]:
    """Of a table that has no unique index over the columns of its key any more."""
    return (
        reason("table {} has neither a primary key nor a replica identity index", table),
        reason("the key ({}) of table {} has no unique index over not-null columns{}", ANY, table, ANY),
        reason("no unique index over not-null columns is on its key ({}) any more", ANY),
        reason("its primary key is ({}) now, not ({})", ANY, ANY),
    )


def key_column_gone(table: str, column: str) -> tuple[str, ...]:
    """Of a table of whose key a column has another name, or is gone."""
    return (
        reason("a change in the stream is of before column {}, which is in its key, was called so", ANY),
        reason("column {}, which is in its key, is gone", column),
        reason("no unique index over not-null columns is on its key ({}) any more", ANY),
        reason("table {} has no column {} any more, which is in its key", table, column),
        reason("table {} lacks a column of its key ({})", table, ANY),
    )


_REFUSED: Final = "PostgreSQL refuses every UPDATE and DELETE of it while it is published"


def no_identity(table: str, columns: Collection[str]) -> tuple[str, ...]:
    """Of a table whose deletes do not tell its key."""
    every = reason("its replica identity leaves out every column: {}", _REFUSED)
    return (
        *_of_table(table, every),
        *(reason("its replica identity leaves out {}, which is in its key", column) for column in columns),
        *(
            reason("the replica identity of table {} leaves out {}, which is in its key", table, column)
            for column in columns
        ),
    )


def partition_without_identity(table: str, columns: Collection[str]) -> tuple[str, ...]:
    """Of a table with a partition whose deletes do not tell its key."""
    every = reason("the replica identity of its partition {} leaves out every column: {}", ANY, _REFUSED)
    named = (
        reason("the replica identity of its partition {} leaves out {}, which is in its key", ANY, column)
        for column in columns
    )
    return (*_of_table(table, every), *(each for obstacle in named for each in not_followed(table, obstacle)))


def virtual_in_identity(table: str, columns: Collection[str]) -> tuple[str, ...]:
    """Of a table, or partition of it, whose replica identity is full and has a virtual generated column."""
    end = "is full and has column {}, a virtual generated one: {}"
    found = [reason(f"its replica identity {end}", column, _REFUSED) for column in columns]
    found += [reason(f"the replica identity of its partition {{}} {end}", ANY, column, _REFUSED) for column in columns]
    return tuple(each for obstacle in found for each in _of_table(table, obstacle))


def _of_table(table: str, obstacle: str) -> tuple[str, str]:
    """Return the reason as a stopped table has it, and as a start that is refused for it."""
    return obstacle, reason("table {}: ", table) + obstacle


def gone(table: str) -> tuple[str, ...]:
    """Of a table that is not where it was, or another is there."""
    return (
        reason("it was renamed to {}", ANY),
        reason("it was dropped"),
        reason("it was dropped, and another has its name"),
        reason("table {} does not exist any more", table),
        reason("databases.main.tables names {}, but there is no such ordinary table in the database", table),
    )


TAKEN_OUT: Final = reason("it was taken out of the publication")
"""Of a table that is not published whole."""
EDITED: Final = reason(
    "the publication was altered for it, and perhaps altered back: what was written meanwhile may be missing"
)


def taken_out_since(table: str) -> str:
    return reason("topic {} has records, but table {} was taken out of the publication since", ANY, table)


def publication(what: str) -> str:
    """Of a source whose publication another session dropped, made again or altered."""
    return reason("publication headrace of main {}{}", what, ANY)


def unlogged(partition: str) -> str:
    return reason("its partition {} is unlogged, so that its changes are not in the WAL", partition)


def not_followed(table: str, obstacle: str) -> tuple[str, ...]:
    """Of a table with a partition that cannot be followed."""
    return obstacle, reason("table {} cannot be followed: ", table) + obstacle


def hidden(table: str | None) -> tuple[str, ...]:
    """Of a start that has to copy a table which may not be read."""
    return (
        reason("table {} may not be read by this role", table),
        reason("table {} has row security, which hides rows from this role", table),
    )


def not_validated(table: str, columns: Collection[str]) -> tuple[str, ...]:
    """Of a table whose key may be null in rows from before."""
    told = "column {}, which is in the key of table {}, is NOT NULL by a constraint that is NOT VALID: {}"
    return tuple(reason(told, column, table, "rows may have null there") for column in columns)


TWO_PHASE: Final = reason("slot {} was made with two_phase, and sends transactions before they are committed", ANY)

AS_ONE: Final = reason("it was published as one (publish_via_partition_root) for a while")


def without_text(table: str, column: str, bytes_: str, encoding: str) -> tuple[str, ...]:
    """Of a table that has a value with `bytes_` (in hexadecimal), which are no text in UTF-8."""
    told = f"{table}: a value of column {column} "
    shown = " ".join(f"0x{byte:02x}" for byte in bytes.fromhex(bytes_))
    if encoding == "SQL_ASCII":
        unknown = "has bytes that are not UTF-8, and its database (SQL_ASCII) does not say which encoding they are in"
        read = f'invalid byte sequence for encoding "UTF8": {shown}'
        return (
            reason("{}", told + unknown),
            reason("PostgreSQL cannot read its rows: {} (SQLSTATE 22021)", read),
            reason("PostgreSQL cannot read its rows: {} {} (SQLSTATE 22021)", read, ANY),  # the bytes after it
        )
    none = f"has the bytes {bytes.fromhex(bytes_).hex(' ')}, which are no character of {encoding}"
    read = f'character with byte sequence {shown} in encoding "{encoding}" has no equivalent in encoding "UTF8"'
    return reason("{}", told + none), reason("PostgreSQL cannot read its rows: {} (SQLSTATE 22P05)", read)
