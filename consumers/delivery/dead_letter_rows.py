"""The rows of a migration's dead letters in its target database: recorded, settled and later deleted.

`headrace.dead_letters` has a row for each, written in the transaction that advanced the ledger past the event, and
settled in the transaction that later applied or discarded it. So a crash or failover that loses one of ledger, effect
and dead letter loses all three. The event itself (consumers/delivery/dead_letter_topic.py) is in Kafka before its row,
and stays there until REMOVED_AFTER after the row was settled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import psycopg

from consumers.contract.migration import Migration, Shared
from consumers.delivery.dead_letter_topic import Entry, Identity, NewDeadLetter
from consumers.ledger.progress import Connection, Cursor, Place
from infra.postgres.advisory_locks import holders, lock_key
from infra.postgres.parameters import storable
from schemas.errors import Refused
from schemas.positions import Offset

REMOVED_AFTER: Final = timedelta(days=1)
"""How long a settled event stays in Kafka. A failover to a standby that lacks the retry's commit reopens the dead
letter, which needs the event: so this is longer than the lag of any standby that would be promoted."""

Row = tuple[str, int, int, int, str, str, datetime]

_RECORD: Final = """
    WITH recorded AS (
        INSERT INTO headrace.dead_letters AS d
               (migration, run, topic, partition, event_offset, topic_id, database, reason)
        SELECT p.migration, p.run, p.topic, p.partition, e.event_offset, p.topic_id, %(database)s, e.reason
          FROM unnest(%(topics)s::text[], %(partitions)s::int[], %(offsets)s::bigint[], %(reasons)s::text[])
               AS e(topic, partition, event_offset, reason)
          JOIN headrace.progress p
            ON p.migration = %(migration)s AND p.run = %(run)s AND p.topic = e.topic AND p.partition = e.partition
        ON CONFLICT (migration, run, topic, partition, event_offset)
        DO UPDATE SET reason = excluded.reason, database = excluded.database, recorded_at = now(), settled_at = NULL
        RETURNING d.*)
    UPDATE headrace.dead_letters d SET settled_at = now() FROM recorded r
     WHERE d.migration = r.migration AND d.run < r.run AND d.topic = r.topic AND d.partition = r.partition
       AND d.event_offset = r.event_offset AND d.topic_id = r.topic_id AND d.settled_at IS NULL
"""
_OPEN: Final = """
    SELECT topic, partition, event_offset, run, database, reason, recorded_at
      FROM headrace.dead_letters
     WHERE migration = %(migration)s AND settled_at IS NULL AND (%(database)s::text IS NULL OR database = %(database)s)
     ORDER BY topic COLLATE "C", partition, event_offset, run
"""
_SETTLE: Final = """
    UPDATE headrace.dead_letters SET settled_at = now()
     WHERE migration = %s AND topic = %s AND partition = %s AND event_offset = %s AND run = %s AND settled_at IS NULL
"""
_OLD: Final = """
    SELECT topic, partition, event_offset, run FROM headrace.dead_letters
     WHERE migration = %(migration)s AND settled_at < now() - %(after)s
       AND (%(database)s::text IS NULL OR database = %(database)s)
"""
_FORGET: Final = """
    DELETE FROM headrace.dead_letters d
     USING unnest(%(topics)s::text[], %(partitions)s::int[], %(offsets)s::bigint[], %(runs)s::int[])
           AS gone(topic, partition, event_offset, run)
     WHERE d.migration = %(migration)s AND d.settled_at < now() - %(after)s
       AND d.topic = gone.topic AND d.partition = gone.partition AND d.event_offset = gone.event_offset
       AND d.run = gone.run
"""


class Busy(Refused):
    """Wait for that session to end, or terminate it, then run the command again."""


def record(cursor: Cursor, migration: str, run: int, database: str, dead_letters: Sequence[NewDeadLetter]) -> None:
    """Record dead letters in the transaction that advances the ledger past them, after the advance.

    This settles dead letters of the same events from earlier runs. Does nothing if the list is empty.
    """
    if dead_letters:
        cursor.execute(
            _RECORD,
            {
                "migration": migration,
                "run": run,
                "database": database,
                "topics": [event.place.topic for event in dead_letters],
                "partitions": [event.place.partition for event in dead_letters],
                "offsets": [event.offset for event in dead_letters],
                "reasons": [storable(cursor.connection, event.reason) for event in dead_letters],
            },
        )


def open_rows(connection: Connection, migration: type[Migration] | Migration, database: str) -> list[Row]:
    """Return the rows of the migration's open dead letters in `database`; none if it never ran.

    Those of a gitlab schema with one owner follow it to its next owner, as its ledger does. Those of a table that every
    database has belong to the database whose consumer recorded them, though a promoted copy has another database's rows
    too.
    """
    if connection.execute("SELECT to_regclass('headrace.dead_letters')").fetchone() == (None,):
        return []
    return connection.execute(_OPEN, _of(migration, database)).fetchall()


def entries_of(rows: Iterable[Row], kept: Iterable[Entry]) -> list[Entry]:
    """Return the dead letters of `rows`, in order, each with its event from the topic if it is there."""
    known = {entry.identity: entry for entry in kept}
    found = []
    for topic, partition, offset, run, database, reason, recorded_at in rows:
        place = Place(topic, partition)
        at = recorded_at.astimezone(UTC).replace(microsecond=0)
        entry = Entry(database, place, Offset(offset), run, reason, at, None)
        if (event := known.get(entry.identity)) is not None:
            entry = dataclasses.replace(entry, value=event.value, key=event.key)
        found.append(entry)
    return found


def settle(cursor: Cursor, migration: str, entry: Entry) -> bool:
    """Settle a dead letter in the transaction of its effect; False if it is no longer open."""
    place, offset, run = entry.identity
    cursor.execute(_SETTLE, (migration, *place, offset, run))
    return cursor.rowcount == 1


def removable(connection: Connection, migration: Migration, database: str) -> set[Identity]:
    """Return the dead letters settled so long ago that their events may be removed from Kafka."""
    found = connection.execute(_OLD, {**_of(migration, database), "after": REMOVED_AFTER})
    return {(Place(topic, partition), Offset(offset), run) for topic, partition, offset, run in found}


def forget(connection: Connection, migration: str, identities: Iterable[Identity]) -> None:
    """Delete `removable` rows after their events were removed from Kafka. Idempotent."""
    gone = sorted(identities)
    connection.execute(
        _FORGET,
        {
            "migration": migration,
            "after": REMOVED_AFTER,
            "topics": [place.topic for place, _, _ in gone],
            "partitions": [place.partition for place, _, _ in gone],
            "offsets": [offset for _, offset, _ in gone],
            "runs": [run for _, _, run in gone],
        },
    )


def _of(migration: type[Migration] | Migration, database: str) -> dict[str, str | None]:
    own = database if migration.shared is Shared.PER_DATABASE else None
    return {"migration": migration.name, "database": own}


class Exclusion:
    """A session-level lock that lets one process at a time settle a migration's dead letters.

    Correctness does not depend on it: an event that two processes settle concurrently is still applied by only one.
    """

    def __init__(self, migration: str) -> None:
        self.sessions = 0
        """The number of sessions that have held it. An increase means a session, and perhaps commits, were lost."""
        self._migration = migration
        self._key = lock_key("dead letters", migration)
        self._held_by: Connection | None = None

    def hold(self, connection: Connection) -> None:
        """Take the lock for the connection's session, unless it has it; call it before each transaction.

        Raises Busy with the session that holds it. If a lost session of this process may still hold it, waits up to
        `lock_timeout`.
        """
        if connection is self._held_by:
            return
        connection.execute(
            "SELECT set_config('application_name', %s, false)", (f"headrace dead-letters {self._migration}",)
        )
        if self.sessions:
            try:
                connection.execute("SELECT pg_advisory_lock(%s)", (self._key,))
            except psycopg.errors.LockNotAvailable:
                raise self._busy(connection) from None
        elif connection.execute("SELECT pg_try_advisory_lock(%s)", (self._key,)).fetchone() != (True,):
            raise self._busy(connection)
        self.sessions += 1
        self._held_by = connection

    def _busy(self, connection: Connection) -> Busy:
        sessions = ", ".join(holders(connection, self._key)) or "another session"
        return Busy(f"the dead letters of {self._migration} are already being retried or discarded by {sessions}")
