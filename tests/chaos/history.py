"""A history of every write, kept by triggers, and of every ledger move, from the WAL; and the faults in it.

Pure apart from reading the history, so that tests can show that each fault is found.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, Final, NamedTuple

import psycopg

from tests.chaos import witness
from tests.chaos.writing import Row

HISTORY: Final = """
    CREATE SCHEMA history;
    CREATE TABLE history.writes (
        sequence bigint GENERATED ALWAYS AS IDENTITY, at timestamptz NOT NULL DEFAULT clock_timestamp(),
        xid bigint NOT NULL, relation text NOT NULL, id bigint NOT NULL, old_state text, new_state text NOT NULL,
        application text NOT NULL
    );
    CREATE FUNCTION history.log_write() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE
            was jsonb := CASE WHEN TG_OP = 'UPDATE' THEN to_jsonb(OLD) END;
            is_now jsonb := to_jsonb(NEW);
        BEGIN
            INSERT INTO history.writes (xid, relation, id, old_state, new_state, application)
            VALUES (
                pg_current_xact_id()::text::bigint, TG_TABLE_NAME, NEW.id,
                (SELECT string_agg(coalesce(was ->> name, ''), '/') FROM unnest(TG_ARGV) name WHERE was IS NOT NULL),
                (SELECT string_agg(coalesce(is_now ->> name, ''), '/') FROM unnest(TG_ARGV) name),
                current_setting('application_name')
            );
            RETURN NULL;
        END $$;
    CREATE TRIGGER log_write AFTER INSERT OR UPDATE ON public.container_repositories
        FOR EACH ROW EXECUTE FUNCTION history.log_write('migration_state', 'migration_skipped_reason');
    CREATE TRIGGER log_write AFTER INSERT OR UPDATE ON public.repositories
        FOR EACH ROW EXECUTE FUNCTION history.log_write('migration_status');
"""


class Poll(NamedTuple):
    """What status reported for a migration; `ended` is when the answer had arrived."""

    migration: str
    state: str
    ends: Mapping[int, int]
    ended: float


class Effect(NamedTuple):
    """A write of a migration."""

    at: float
    xid: int
    old: str
    new: str


class Event(NamedTuple):
    """An event that requires its row to be changed; when its transaction committed, and when the producer read it."""

    partition: int
    offset: int
    committed: float
    seen: float


class Moves:
    """The moves of one migration's ledger, in order; `fault` is None if each offset was passed once."""

    def __init__(self) -> None:
        self.fault: str | None = None
        self._moves: dict[int, list[tuple[int, int]]] = defaultdict(list)

    def add(self, run: int, partition: int, old: int | None, new: int, xid: int) -> None:
        known = self._moves[partition]
        expected = known[-1][0] if known else None
        if run != 1 or old != expected or (old is not None and new <= old) or (old is None and new != 0):
            self.fault = f"run {run} of partition {partition} moved from {old} to {new}, not from {expected}"
        known.append((new, xid))

    def over(self, partition: int, offset: int) -> int | None:
        """Return the transaction that moved the ledger over an offset."""
        low, high = 0, len(moves := self._moves[partition])
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if moves[middle][0] > offset else (middle + 1, high)
        return moves[low][1] if low < len(moves) else None


class History:
    """What the triggers logged, and the ledger's moves from the WAL."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.effects: dict[str, dict[int, list[Effect]]] = defaultdict(lambda: defaultdict(list))
        self.moves: dict[str, Moves] = defaultdict(Moves)
        self.logged: set[Row] = set()
        """Rows that the application wrote."""
        for at, xid, table, key, old, new, application in connection.execute(
            "SELECT extract(epoch FROM at)::float8, xid, relation, id, old_state, new_state, application"
            " FROM history.writes ORDER BY sequence"
        ):
            if application.startswith("headrace"):
                self.effects[table][key].append(Effect(at, xid, old, new))
            elif application.startswith("application"):
                self.logged.add((table, key))
        for migration, moves in witness.read(connection).moves.items():
            for move in moves:
                self.moves[migration].add(move.run, move.partition, move.old, move.new, move.xid)


class Fault(NamedTuple):
    """A broken promise, and the row or partition it concerns."""

    kind: str
    what: str


def find_faults(
    wanted: Set[int],
    states: tuple[str, str],
    events: Mapping[int, Sequence[Event]],
    effects: Mapping[int, Sequence[Effect]],
    moves: Moves,
    finished: Sequence[Poll],
) -> Iterator[Fault]:
    """Yield the faults of one migration.

    `wanted` are the keys of the rows that have to be changed once each, from the first of `states` to the second;
    `events` are the events that require it and `effects` the migration's writes, both by key; `finished` are the status
    reports that said that nothing is left.
    """
    if moves.fault is not None:
        yield Fault("ledger did not move forward", moves.fault)
    for key in sorted(key for key, done in effects.items() if done and key not in wanted):
        yield Fault("changed but not wanted", str(key))
    for key in sorted(wanted):
        matching, done = events.get(key, ()), effects.get(key, ())
        if len(matching) != 1:
            yield Fault("not exactly one event", f"{key} has {len(matching)} events")
        if len(done) != 1:
            yield Fault("not changed once", f"{key} changed {len(done)} times")
        for effect in done:
            if (effect.old, effect.new) != states:
                yield Fault("changed wrongly", f"{key} from {effect.old} to {effect.new}")
        for event in matching:
            passed = moves.over(event.partition, event.offset)
            if done and passed != done[0].xid:
                yield Fault(
                    "passed by another transaction",
                    f"{key}: changed by {done[0].xid}, its event {event.partition}@{event.offset} passed by {passed}",
                )
            report = next((poll for poll in finished if poll.ends.get(event.partition, 0) > event.offset), None)
            if report is not None and (not done or done[0].at > report.ended):
                yield Fault("status reported caught up too early", f"{key} was")
