"""Faults of issue 12, planted again so that the fuzz of tables can show that it finds them.

A fault is data: the places in headrace's source that fix it, and the code without the fix. It is planted in a running
process by replacing the function or the SQL text; the checkout is unchanged.
"""

from __future__ import annotations
import __future__

import importlib
import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any, Final

from tests.server_versions import MAJORS


@dataclass(frozen=True)
class Edit:
    """Replaces `old` by `new`, in a function or a text; `where` is `module:name` or `module:Class.name`."""

    where: str
    old: str
    new: str


@dataclass(frozen=True)
class Plant:
    """A fault: the issue's item number, its description, and its edits."""

    point: int
    what: str
    edits: tuple[Edit, ...]
    majors: tuple[int, ...] = MAJORS
    """The PostgreSQL versions that show it."""


PLANTS: Final[dict[str, Plant]] = {
    "unwritable": Plant(
        1,
        "a table that cannot be updated while it is published is published",
        (Edit("producers.source.writability:refused_writes", "for row in found}", "for row in found if False}"),),
    ),
    "unpublished_generated": Plant(
        1,
        "stored generated columns are not published, so that a table with full identity cannot be updated",
        (
            Edit("producers.source.publication:ensure_publication", "_WHOLE + (_GENERATED if", '_WHOLE + ("" if'),
            Edit("producers.source.publication:ensure_publication", " and publication.generated", ""),
        ),
        (18,),
    ),
    "bare_operators": Plant(
        2,
        "keys are compared by operators found by their bare name, but sorted by the type's own",
        (
            Edit("infra.postgres.key_order:Operators.named", 'sql.SQL("OPERATOR({}.{})")', "sql.SQL(name)"),
            Edit("infra.postgres.key_order:ascending", '"{} USING {}"', '"{}"'),
        ),
    ),
    "partitions_unwatched": Plant(
        3,
        "an added or removed partition is not noticed",
        (
            Edit(
                "producers.watch.partition_watch:PartitionWatch.look",
                "now = read_partitions(self._connection, partitioned.keys())",
                "return []",
            ),
        ),
    ),
    "published_as_one": Plant(
        3,
        "a partitioned table is published via its root, whose identity its partitions may lack",
        (
            Edit(
                "producers.source.publication:_WHOLE",
                "publish_via_partition_root = false",
                "publish_via_partition_root = true",
            ),
            Edit("producers.source.publication:_PUBLICATION", "AND NOT (p.pubviaroot AND c.relkind = 'p')", ""),
            Edit(
                "producers.publish.capture:Capture._feed_of",
                "if feed.table.partitioned and feed.table.relation.oid == oid:",
                "if False:",
            ),
        ),
    ),
    "truncated_partition": Plant(
        3,
        "a truncate of one partition is not noticed",
        (
            Edit(
                "producers.publish.capture:Capture._truncate",
                "for feed, others in left.items():",
                "for feed, others in ():",
            ),
            # The partition gets a new file, by which the catalog watch would notice it a moment later.
            Edit("producers.source.partitions:compared", "if now.by_oid[oid].file != before[oid].file)", "if False)"),
        ),
    ),
    "attribute_number": Plant(
        4,
        "a column dropped and added again is taken for the old one",
        (Edit("producers.publish.silent_changes:_changed", "if was.number != now.number:", "if False:"),),
    ),
    "publication_edits": Plant(
        5,
        "an edit of the publication that is undone is not noticed",
        (
            Edit("producers.source.publication:edited", "if recorded is not None and recorded != now:", "if False:"),
            Edit("producers.source.publication:replaced", "if was == now:", "if True:"),
        ),
    ),
    "order_of_bytes": Plant(
        6,
        "text keys of every encoding are assumed to sort by their UTF-8 bytes",
        (Edit("producers.source.tables:_all_comparable", "operators.in_bytes and ", ""),),
    ),
    "stream_in_utf8": Plant(
        6,
        "the server converts the stream, and ends it at a character without a UTF-8 equivalent",
        (
            Edit("producers.source.server_text:server_text", "None if encoding == UTF8 else", "None if encoding else"),
            Edit("producers.source.server_text:stream_encoding", "else NO_ENCODING", "else UTF8"),
        ),
    ),
    "fatal_request": Plant(
        7,
        "an impossible request ends the source at every start",
        (
            Edit(
                "producers.session.snapshot_requests:Requests.take",
                "except RequestRefused as",
                "except ZeroDivisionError as",
            ),
        ),
    ),
    "fatal_table": Plant(
        8,
        "a PostgreSQL error in one table ends the source",
        (
            Edit(
                "producers.source.table_errors:judged",
                'return TableStopped(f"PostgreSQL cannot read its rows{told} (SQLSTATE {state})")',
                "return None",
            ),
        ),
    ),
    "rewritten_table": Plant(
        11,
        "a type change is followed although it changes values",
        (Edit("producers.publish.silent_changes:_rewritten", "return bool(before.storage)", "return False"),),
    ),
    "renamed_label": Plant(
        11,
        "changed enum labels and composite attributes are not noticed",
        (
            Edit(
                "producers.publish.silent_changes:_changed",
                "any(now.types.get(part, version) != version for part, version in was.types.items())",
                "False",
            ),
        ),
    ),
    "session_settings": Plant(
        12,
        "sessions use the settings of role and database",
        (
            Edit(
                "infra.postgres.connect:pinned", "return f\"SELECT {', '.join(calls)}\".encode()", 'return b"SELECT 1"'
            ),
        ),
    ),
    "null_key": Plant(
        13,
        "a key with a NOT NULL constraint that is NOT VALID is accepted",
        (
            Edit("producers.source.table_keys:_UNIQUE", "AND NOT c.convalidated", "AND false"),
            Edit("producers.watch.catalog_watch:_NOW", "AND NOT n.convalidated", "AND false"),
        ),
        (18,),
    ),
    "hidden_rows": Plant(
        13,
        "a table that cannot be read at one start is stopped for good",
        (Edit("producers.source.tables:_hidden", "return UnreadableTable(", "raise UnreadableTable("),),
    ),
    "two_phase": Plant(
        13,
        "a slot created with two_phase is read",
        (Edit("producers.source.preflight:_of_slot", "if state is not None and state.two_phase:", "if False:"),),
    ),
    "says_ready": Plant(
        13,
        "`headrace check` reports ready although a start is refused",
        (Edit("producers.session.check:_gaps", "yield Finding(gap.problem, gap.remedy)", "pass"),),
    ),
    "long_years": Plant(
        16,
        "the Python codec reads only four digits of a six-digit year",
        (
            Edit("schemas.codec.values:_outside", "or len(found[1]) > 4", ""),
            Edit("schemas.codec.values:_day", "int(found[1])", "int(found[1][:4])"),
        ),
    ),
    "no_locale_provider": Plant(
        17,
        "a query for PostgreSQL 14 has a column that it lacks",
        (Edit("infra.postgres.key_order:_BY_INDEX", "to_jsonb(d)->>'datlocprovider'", "d.datlocprovider::text"),),
        (14,),
    ),
    "equal_keys": Plant(
        18,
        "a key changed to an equal text is not treated as another key",
        (
            Edit(
                "producers.publish.capture:Capture._update",
                "if key_of(route, before) != key_of(route, after):",
                "if [x.lower().rstrip(b'0') if b'.' in x else x.lower() for x in key_of(route, before)]"
                " != [x.lower().rstrip(b'0') if b'.' in x else x.lower() for x in key_of(route, after)]:",
            ),
        ),
    ),
}
"""Name → fault.

A round cannot show items 9, 10, 14 and 19, which are about time, memory and existing topics: they are in
tests/producers/source/test_table_errors.py and test_copy_phase.py, tests/infra/postgres/test_copy_out.py and `make
bench ONLY=wide`, tests/producers/watch/test_topic_watch.py, tests/producers/session/test_acquire.py. Item 15 is
a limit that docs/reference/events.md documents.
"""


def plant(name: str | None) -> None:
    """Plant a fault in this process for good; None: nothing. Raises ValueError if its fix is not found."""
    edits: dict[str, list[Edit]] = {}
    for edit in PLANTS[name].edits if name is not None else ():
        edits.setdefault(edit.where, []).append(edit)
    for where, made in edits.items():
        _put(where, _edited(where, made))


@contextmanager
def planted(name: str | None) -> Iterator[None]:
    """Plant a fault in this process for the block; None: nothing."""
    places = {edit.where for edit in (PLANTS[name].edits if name is not None else ())}
    before = {where: _found(where) for where in places}
    try:
        plant(name)
        yield
    finally:
        for where, was in before.items():
            _put(where, was)


def _edited(where: str, edits: list[Edit]) -> str | CodeType:
    """Return the edited text, or the edited function's code."""
    holder, name = _place(where)
    found = getattr(holder, name)
    text = found if isinstance(found, str) else textwrap.dedent(inspect.getsource(found))
    for edit in edits:
        if edit.old not in text:
            raise ValueError(f"{where} has no {edit.old!r} to replace: the fix has moved")
        text = text.replace(edit.old, edit.new)
    if isinstance(found, str):
        return text
    made: dict[str, Any] = {}
    # The module's own globals, so that only the code differs.
    exec(compile(text, where, "exec", flags=__future__.annotations.compiler_flag), found.__globals__, made)
    code: CodeType = made[name].__code__
    return code


def _found(where: str) -> str | CodeType:
    holder, name = _place(where)
    found: str | FunctionType = getattr(holder, name)
    return found if isinstance(found, str) else found.__code__


def _put(where: str, what: str | CodeType) -> None:
    """Replace a text, or a function's code, for every importer of the function."""
    holder, name = _place(where)
    if isinstance(what, str):
        setattr(holder, name, what)
    else:
        getattr(holder, name).__code__ = what


def _place(where: str) -> tuple[Any, str]:
    module, _, path = where.partition(":")
    *outer, name = path.split(".")
    holder: Any = importlib.import_module(module)
    for each in outer:
        holder = getattr(holder, each)
    return holder, name
