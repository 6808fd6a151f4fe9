"""Compares a table with its topic, row by row, while both are live.

First by marks, the hashes of keys and rows (`consumers.compare.marking`); then the keys whose marks differ, because of
a fault or because they were changed meanwhile, are read again and judged (`consumers.compare.judgement`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

from consumers.compare.judgement import Comparison, Judge
from consumers.compare.marking import Marking
from consumers.compare.table_rows import TableRows
from consumers.compare.topic_rows import TopicRows
from consumers.compare.work_directory import WorkDirectory
from consumers.delivery.topic_identity import topic_ids
from consumers.delivery.topics import schemas_of
from consumers.operations.start_offsets import first_key
from infra.postgres import connect
from infra.schema_registry.topic_registry import open_registry
from infra.service import log
from infra.settings.model import Settings
from infra.settings.table_labels import TableLabels
from infra.state.positions import Positions
from schemas.avro import columns_of, row_record
from schemas.errors import HeadraceError, UsageError
from schemas.topics import table_topic
from schemas.wire import split_wire

_MOST: Final = 200_000
"""With more differing keys, the topic belongs to another table."""


class TopicDiffers(HeadraceError):
    """Re-snapshot them with --repair; remove extra rows of the topic with `headrace snapshot TABLE --from-scratch`."""


def compare(settings: Settings, database: str, table: str, stopping: threading.Event) -> Comparison:
    """Compare a source's table with its topic; write heartbeats, and marks to disk (48 bytes a row), but nothing else.

    A comparison that was stopped or killed continues in the next call, if that is within a day. Raises UsageError if
    the table or the topic does not exist, and HeadraceError if the producer makes no progress or most rows differ.
    """
    section = settings.database(database)
    gitlab_schema = TableLabels(database, section).of(table)
    schema, _, name = table.partition(".")
    topic = table_topic(settings.prefix, gitlab_schema, database, schema, name)
    look_up = schemas_of(open_registry(settings))
    key = first_key(settings.kafka, topic)
    if key is None:
        raise UsageError(f"topic {topic} has no events", remedy="start its producer first")
    positions = Positions(settings.prefix, settings.kafka)
    _refuse_unread(positions, database, table)
    names = settings.kafka.bootstrap_servers, settings.prefix, database, table
    with (
        connect.session(section, name=f"verify {table}", reading=True) as connection,
        WorkDirectory(section.spill_directory, names) as work,
    ):
        rows = TableRows(connection, table, gitlab_schema, columns_of(look_up(split_wire(key)[0])))
        records = TopicRows(settings.kafka, topic)
        result = Comparison(table, database)
        comparable = _comparable(look_up, rows.row_fields)
        lines = log.get(table=table, database=database)
        marking = Marking(rows, records, work, comparable, stopping, lines)
        marked = marking.run({"topic": topic_ids(settings.kafka, [topic])[topic]}, _MOST)
        result.rows, result.looked_at_again = marked.rows, len(marked.differences)
        if len(marked.differences) > _MOST:
            work.remove()
            raise TopicDiffers(f"more than {_MOST:,} of {marked.rows:,} rows differ from the topic")
        Judge(result, connection, rows, records, positions, look_up, stopping).judge(marked)
        work.remove()
    return result


def _comparable(look_up: Callable[[int], dict[str, Any]], row_fields: object) -> Callable[[int], bool]:
    """Return whether the rows of a schema, by its id, have the table's fields."""
    return lambda schema_id: row_record(look_up(schema_id))["fields"] == row_fields


def _refuse_unread(positions: Positions, database: str, table: str) -> None:
    state = positions.sources().get(database)
    snapshot = state.snapshots.get(table) if state else None
    if snapshot is None:
        raise UsageError(
            f"no producer of {database} has snapshotted {table}",
            remedy=f"start it with `headrace produce {database}`",
        )
    if snapshot.from_scratch:
        raise HeadraceError(
            f"{table} is to be re-snapshotted from scratch, which empties its topic first",
            remedy=f"compare once the producer of {database} has done so and `headrace status` shows it done",
        )
    if not snapshot.done:
        raise HeadraceError(
            f"the snapshot of {table} is not done: {snapshot.chunks_done} of {snapshot.chunks} chunks",
            remedy="compare once `headrace status` shows it done",
        )
