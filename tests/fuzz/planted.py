"""Faults of issue 12 put back, so that the fuzz of tables can show that it finds them.

Each is put back by taking its mend out of headrace's source.
A fault is data: the places of the source that mend it, and what stood there before, or would. It is planted in a
process that runs, where the function or the SQL text is replaced; the checkout is left alone.
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
    """Puts `new` in the place of `old`, in a function or a text; `where` is `module:name` or `module:Class.name`."""

    where: str
    old: str
    new: str


@dataclass(frozen=True)
class Plant:
    """A fault: the issue's point that named it, what it does, and by which edits."""

    point: int
    what: str
    edits: tuple[Edit, ...]
    majors: tuple[int, ...] = MAJORS
    """The versions of PostgreSQL where it shows."""


PLANTS: Final[dict[str, Plant]] = {
    "unwritable": Plant(
        1,
        "a table that PostgreSQL refuses to update once it is published is published",
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
        "keys are compared by operators that are found by name, and sorted by their type's own",
        (
            Edit("infra.postgres.key_order:Operators.named", 'sql.SQL("OPERATOR({}.{})")', "sql.SQL(name)"),
            Edit("infra.postgres.key_order:ascending", '"{} USING {}"', '"{}"'),
        ),
    ),
    "partitions_unwatched": Plant(
        3,
        "a partition that comes or goes is not noticed",
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
        "a partitioned table is published via its root, whose identity its partitions may not have",
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
            # It has another file then, by which the look at the catalog would notice it a moment later.
            Edit("producers.source.partitions:compared", "if now.by_oid[oid].file != before[oid].file)", "if False)"),
        ),
    ),
    "attribute_number": Plant(
        4,
        "a column dropped and added again is taken for the one that it was",
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
        "text keys of every encoding are taken to sort as the bytes of UTF-8",
        (Edit("producers.source.tables:_comparable", "operators.in_bytes and ", ""),),
    ),
    "stream_in_utf8": Plant(
        6,
        "the server converts the stream, and ends it at a character that UTF-8 does not have",
        (
            Edit("producers.source.server_text:server_text", "None if encoding == _UTF8 else", "None if encoding else"),
            Edit("producers.source.server_text:stream_encoding", "else _NO_ENCODING", "else _UTF8"),
        ),
    ),
    "fatal_request": Plant(
        7,
        "a request that cannot be done ends the source, at every start",
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
        "an error of PostgreSQL's that one table raises ends the source",
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
        "a change of a type is followed although it changes values",
        (Edit("producers.publish.silent_changes:_rewritten", "return bool(before.storage)", "return False"),),
    ),
    "renamed_label": Plant(
        11,
        "labels of enums and attributes of composites that are changed are not noticed",
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
        "sessions go by the settings of role and database",
        (
            Edit(
                "infra.postgres.connect:pinned", "return f\"SELECT {', '.join(calls)}\".encode()", 'return b"SELECT 1"'
            ),
        ),
    ),
    "null_key": Plant(
        13,
        "a key that is NOT NULL by a constraint that is NOT VALID is taken",
        (
            Edit("producers.source.tables:_UNIQUE", "AND NOT c.convalidated", "AND false"),
            Edit("producers.watch.catalog_watch:_NOW", "AND NOT n.convalidated", "AND false"),
        ),
        (18,),
    ),
    "hidden_rows": Plant(
        13,
        "a table whose rows may not be read at one start is stopped for good",
        (Edit("producers.source.tables:_hidden", "return UnreadableTable(", "raise UnreadableTable("),),
    ),
    "two_phase": Plant(
        13,
        "a slot that was made with two_phase is read",
        (Edit("producers.source.preflight:_of_slot", "if state is not None and state.two_phase:", "if False:"),),
    ),
    "says_ready": Plant(
        13,
        "`headrace check` says ready although a start is refused",
        (Edit("producers.session.check:_gaps", "yield Finding(gap.problem, gap.remedy)", "pass"),),
    ),
    "long_years": Plant(
        16,
        "the Python codec takes the last digits of a year of six for decimals",
        (Edit("schemas.values:quick_encoder", 'text[19:20] == b"."', "True"),),
    ),
    "no_locale_provider": Plant(
        17,
        "PostgreSQL 14 is asked for a column that it does not have",
        (Edit("infra.postgres.key_order:_BY_INDEX", "to_jsonb(d)->>'datlocprovider'", "d.datlocprovider::text"),),
        (14,),
    ),
    "equal_keys": Plant(
        18,
        "a key that is changed to an equal text is no other key",
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

Of points 9, 10, 14 and 19, which are about time, memory and topics made beforehand, a round shows nothing: they are in
tests/producers/source/test_table_errors.py and test_copy_phase.py, tests/infra/postgres/test_copy_out.py and `make
bench ONLY=wide_memory`, tests/producers/watch/test_topic_watch.py, tests/producers/session/test_acquire.py. Point 15 is
a limit that docs/events.md names.
"""


def plant(name: str | None) -> None:
    """Give this process a fault for good; None: none. Raises ValueError where its mend is not found."""
    edits: dict[str, list[Edit]] = {}
    for edit in PLANTS[name].edits if name is not None else ():
        edits.setdefault(edit.where, []).append(edit)
    for where, made in edits.items():
        _put(where, _edited(where, made))


@contextmanager
def planted(name: str | None) -> Iterator[None]:
    """Give this process a fault for a while; None: none."""
    places = {edit.where for edit in (PLANTS[name].edits if name is not None else ())}
    before = {where: _found(where) for where in places}
    try:
        plant(name)
        yield
    finally:
        for where, was in before.items():
            _put(where, was)


def _edited(where: str, edits: list[Edit]) -> str | CodeType:
    """Return what stands at a place once it is edited: a text, or a function's code."""
    holder, name = _place(where)
    found = getattr(holder, name)
    text = found if isinstance(found, str) else textwrap.dedent(inspect.getsource(found))
    for edit in edits:
        if edit.old not in text:
            raise ValueError(f"{where} has no {edit.old!r} to take out: what mends it is somewhere else now")
        text = text.replace(edit.old, edit.new)
    if isinstance(found, str):
        return text
    made: dict[str, Any] = {}
    # The module's own globals, so that nothing but the code differs.
    exec(compile(text, where, "exec", flags=__future__.annotations.compiler_flag), found.__globals__, made)
    code: CodeType = made[name].__code__
    return code


def _found(where: str) -> str | CodeType:
    holder, name = _place(where)
    found: str | FunctionType = getattr(holder, name)
    return found if isinstance(found, str) else found.__code__


def _put(where: str, what: str | CodeType) -> None:
    """Replace a text, or a function's code, which all who have imported the function see."""
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
