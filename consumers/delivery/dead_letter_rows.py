"""Which events of a migration are dead letters, in the database that it writes: recorded, settled, and forgotten late.

`headrace.dead_letters` has a row of each, written in the transaction that moved the ledger past the event, and settled
in the transaction that applied it after all, or discarded it. So whatever a crash or a failover takes back, ledger,
effect and dead letter go together. The event itself (consumers/delivery/dead_letter_topic.py) is in Kafka before its
row, and stays REMOVED_AFTER longer than the row is open.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import psycopg

from consumers.contract.migration import Migration, Shared
from consumers.delivery.dead_letter_topic import Entry, Identity, Parked
from consumers.ledger.progress import Connection, Cursor, Place
from infra.postgres.advisory_locks import holders, lock_key
from schemas.errors import Refused
from schemas.positions import Offset

REMOVED_AFTER: Final = timedelta(days=1)
"""How long a settled event stays in Kafka. A failover to a standby that lacks the retry's commit opens the dead letter
again, and then the event must still be there: so this is longer than any standby is behind that one promotes."""

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
        DO UPDATE SET reason = excluded.reason, database = excluded.database, parked_at = now(), settled_at = NULL
        RETURNING d.*)
    UPDATE headrace.dead_letters d SET settled_at = now() FROM recorded r
     WHERE d.migration = r.migration AND d.run < r.run AND d.topic = r.topic AND d.partition = r.partition
       AND d.event_offset = r.event_offset AND d.topic_id = r.topic_id AND d.settled_at IS NULL
"""
_OPEN: Final = """
    SELECT topic, partition, event_offset, run, database, reason, parked_at
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
    """Wait until that session ends, or end it; then call again."""


def record(cursor: Cursor, migration: str, run: int, database: str, parked: Sequence[Parked]) -> None:
    """Record parked events as dead letters, within the transaction that moved the ledger past them, after it did.

    What an earlier run had parked of the same events is settled by that. Without events nothing is done.
    """
    if parked:
        cursor.execute(
            _RECORD,
            {
                "migration": migration,
                "run": run,
                "database": database,
                "topics": [event.place.topic for event in parked],
                "partitions": [event.place.partition for event in parked],
                "offsets": [event.offset for event in parked],
                "reasons": [event.reason for event in parked],
            },
        )


def open_rows(connection: Connection, migration: type[Migration] | Migration, database: str) -> list[Row]:
    """Return the rows of the dead letters that the migration has in `database`, none where it never ran.

    Those of a gitlab schema that one database owns follow it to its next owner, as its ledger does. Those of a
    `gitlab_shared` table are the database's that parked them, though a promoted copy has another's rows too.
    """
    if connection.execute("SELECT to_regclass('headrace.dead_letters')").fetchone() == (None,):
        return []
    return connection.execute(_OPEN, _of(migration, database)).fetchall()


def entries_of(rows: Iterable[Row], kept: Iterable[Entry]) -> list[Entry]:
    """Return the dead letters of `rows`, in their order, each with its event of those that the topic has."""
    known = {entry.identity: entry for entry in kept}
    found = []
    for topic, partition, offset, run, database, reason, parked_at in rows:
        place = Place(topic, partition)
        at = parked_at.astimezone(UTC).replace(microsecond=0)
        entry = Entry(database, place, Offset(offset), run, reason, at, None)
        if (event := known.get(entry.identity)) is not None:
            entry = dataclasses.replace(entry, value=event.value, key=event.key)
        found.append(entry)
    return found


def settle(cursor: Cursor, migration: str, entry: Entry) -> bool:
    """Settle a dead letter within the transaction of its effect; False when it is not open any more."""
    place, offset, run = entry.identity
    cursor.execute(_SETTLE, (migration, *place, offset, run))
    return cursor.rowcount == 1


def removable(connection: Connection, migration: Migration, database: str) -> set[Identity]:
    """Return which of `open_rows` once were settled so long ago that their events may leave Kafka."""
    found = connection.execute(_OLD, {**_of(migration, database), "after": REMOVED_AFTER})
    return {(Place(topic, partition), Offset(offset), run) for topic, partition, offset, run in found}


def forget(connection: Connection, migration: str, identities: Iterable[Identity]) -> None:
    """Delete the rows of what is `removable`, once its events have left Kafka for good; a duplicate does nothing."""
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
    """The lock of a session under which one process at a time settles a migration's dead letters.

    Nothing depends on it but order: an event that two settle at once is still applied by one of them alone.
    """

    def __init__(self, migration: str) -> None:
        self.sessions = 0
        """How many sessions have held it; one more: the one before was lost, and maybe its last commits with it."""
        self._migration = migration
        self._key = lock_key("dead letters", migration)
        self._held_by: Connection | None = None

    def hold(self, connection: Connection) -> None:
        """Take the lock for the connection's session, unless it has it; call it before each transaction.

        Raises Busy, naming the session that has it. One that is taken over from a lost session of our own is waited
        for as long as the session's `lock_timeout` says.
        """
        if connection is self._held_by:
            return
        connection.execute("SELECT set_config('application_name', %s, false)", (f"headrace parked {self._migration}",))
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
        sessions = ", ".join(holders(connection, self._key)) or "a session"
        return Busy(f"the dead letters of {self._migration} are being retried or discarded already, by {sessions}")
