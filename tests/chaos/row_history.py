"""A history of every row that committed transactions changed, kept by a trigger, and how a topic differs from it.

Pure apart from reading the history, so that tests can show that each kind of difference is found.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import psycopg

from schemas.events import Op
from tests.producers.folding import Record

HISTORY: Final = """
    CREATE SCHEMA history;
    CREATE TABLE history.changes (
        sequence bigint GENERATED ALWAYS AS IDENTITY, xid bigint NOT NULL, op text NOT NULL, key int NOT NULL, row jsonb
    );
    CREATE FUNCTION history.log_change() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE xid bigint := pg_current_xact_id()::text::bigint;
        BEGIN
            IF TG_OP = 'UPDATE' AND NEW.id = OLD.id THEN
                INSERT INTO history.changes (xid, op, key, row) VALUES (xid, 'u', NEW.id, to_jsonb(NEW));
                RETURN NULL;
            END IF;
            IF TG_OP <> 'INSERT' THEN
                INSERT INTO history.changes (xid, op, key) VALUES (xid, 'd', OLD.id);
            END IF;
            IF TG_OP <> 'DELETE' THEN
                INSERT INTO history.changes (xid, op, key, row) VALUES (xid, 'c', NEW.id, to_jsonb(NEW));
            END IF;
            RETURN NULL;
        END $$;
    CREATE TRIGGER log_change AFTER INSERT OR UPDATE OR DELETE ON public.t
        FOR EACH ROW EXECUTE FUNCTION history.log_change();
"""


class Change(NamedTuple):
    """One row's change; `row` is None for a delete, else the row as JSON with sorted keys."""

    op: str
    key: int
    row: str | None


History = Mapping[int, Sequence[Change]]
"""Transaction → its changes in order."""


def recorded(connection: psycopg.Connection[Any]) -> History:
    """Return what the trigger has logged."""
    history: defaultdict[int, list[Change]] = defaultdict(list)
    for xid, op, key, row in connection.execute("SELECT xid, op, key, row FROM history.changes ORDER BY sequence"):
        history[xid].append(Change(op, key, None if row is None else json.dumps(row, sort_keys=True)))
    return history


def published(records: Iterable[Record]) -> History:
    """Return the stream's changes in the topic, in position order."""
    events = [(record.event, record.key["id"]) for record in records if record.event is not None]
    history: defaultdict[int, list[Change]] = defaultdict(list)
    # A changed key is a delete of the old key and a create of the new one, at one position.
    for event, key in sorted(events, key=lambda each: (each[0].source.position, each[0].op is not Op.DELETE)):
        if event.op is not Op.READ:
            assert isinstance(key, int)
            row = None if event.after is None else json.dumps(event.after, sort_keys=True)
            history[event.source.xid or 0].append(Change(str(event.op), key, row))
    return history


def faults(connection: psycopg.Connection[Any], records: Sequence[Record]) -> Iterator[str]:
    """Yield each transaction whose changes are not in the topic exactly once and in order."""
    yield from differences(recorded(connection), published(records))


def differences(committed: History, topic: History) -> Iterator[str]:
    """Yield each transaction that the topic lacks, duplicates, reorders or invents."""
    for xid in sorted(committed.keys() | topic.keys()):
        wanted, found = list(committed.get(xid, ())), list(topic.get(xid, ()))
        if wanted != found:
            yield f"transaction {xid}: committed {wanted[:3]} ({len(wanted)}), in the topic {found[:3]} ({len(found)})"
