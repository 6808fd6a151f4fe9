"""Which database owned a gitlab schema when: a history of every write, kept by triggers on all sides, and its faults.

A tenure is the time for which one database owns a gitlab schema: an epoch of headrace.schema_ownership. The history is
replicated with the data, so that each server has the history of the server that it was copied from. Pure apart from
reading the history, so that tests can show that each fault is found.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import psycopg

from schemas.gitlab_schemas import PER_DATABASE

HISTORY: Final = """
    CREATE SCHEMA history;
    CREATE TABLE history.writes (
        sequence bigint GENERATED ALWAYS AS IDENTITY,
        at double precision NOT NULL DEFAULT extract(epoch FROM clock_timestamp()),
        server text NOT NULL DEFAULT current_setting('cluster_name'),
        gitlab_schema text NOT NULL, relation text NOT NULL, id bigint NOT NULL, op text NOT NULL, old text, new text,
        application text NOT NULL DEFAULT current_setting('application_name'), name text, owner text, epoch bigint
    );
    CREATE FUNCTION history.log_write() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
        DECLARE
            columns text[] := TG_ARGV[1:];
            was jsonb := CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END;
            is_now jsonb := CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END;
        BEGIN
            INSERT INTO history.writes (gitlab_schema, relation, id, op, old, new, name, owner, epoch)
            SELECT TG_ARGV[0], TG_TABLE_NAME, coalesce(NEW.id, OLD.id),
                   CASE TG_OP WHEN 'INSERT' THEN 'c' WHEN 'UPDATE' THEN 'u' ELSE 'd' END,
                   (SELECT string_agg(coalesce(was ->> name, ''), '/') FROM unnest(columns) name WHERE was IS NOT NULL),
                   (SELECT string_agg(coalesce(is_now ->> name, ''), '/')
                      FROM unnest(columns) name WHERE is_now IS NOT NULL),
                   d.name, o.owner, o.epoch
              FROM (SELECT) AS always
              LEFT JOIN headrace.database d ON true
              LEFT JOIN headrace.schema_ownership o ON o.gitlab_schema = TG_ARGV[0];
            RETURN NULL;
        END $$;
"""
"""Run after headrace's own tables are created; then `log_writes` for each table."""

WANTED: Final = "import_skipped/2"
RESET: Final = "default/"
"""Suffixes of the value of a row that the migration has to change, and of one that it has changed."""


def log_writes(gitlab_schema: str, table: str, *columns: str) -> str:
    """Return the statement that logs every write to a table; `columns` make up a row's value."""
    arguments = ", ".join(f"'{word}'" for word in (gitlab_schema, *columns))
    return (
        f"CREATE TRIGGER log_write AFTER INSERT OR UPDATE OR DELETE ON public.{table}"
        f" FOR EACH ROW EXECUTE FUNCTION history.log_write({arguments})"
    )


class Write(NamedTuple):
    """A committed write, with what the database believed about itself; `server` is where it was made."""

    server: str
    sequence: int
    at: float
    gitlab_schema: str
    relation: str
    id: int
    op: str
    old: str | None
    new: str | None
    application: str
    name: str | None
    owner: str | None
    epoch: int

    @property
    def by_migration(self) -> bool:
        return self.application.startswith("headrace consume")


class Event(NamedTuple):
    """A topic's event, of one key."""

    op: str
    value: str | None


class Fault(NamedTuple):
    """A broken promise, and where."""

    kind: str
    what: str


Histories = Mapping[str, Sequence[Write]]
"""Server → every write in its history, including inherited ones."""
Key = tuple[str, int]
"""Table and id."""


def read_history(connection: psycopg.Connection[Any]) -> list[Write]:
    """Return a server's current history."""
    found = connection.execute(
        "SELECT server, sequence, at, gitlab_schema, relation, id, op, old, new, application, name, owner,"
        " coalesce(epoch, 0) FROM history.writes ORDER BY server, sequence"
    )
    return [Write(*row) for row in found]


def in_order(histories: Histories) -> list[Write]:
    """Return every write of all servers once, ordered by tenure, then by sequence."""
    found = {(write.server, write.sequence): write for history in histories.values() for write in history}
    return sorted(found.values(), key=lambda write: (write.gitlab_schema, write.epoch, write.server, write.sequence))


def find_faults(
    histories: Histories,
    topics: Mapping[str, Mapping[int, Sequence[Event]]],
    filled: Mapping[Key, str],
) -> Iterator[Fault]:
    """Yield the faults of a history.

    `topics` has a table's events by key, in topic order; `filled` has the value of each row that existed before the
    history began.
    """
    everything = in_order(histories)
    yield from no_owners(everything)
    # Every database has its own shared tables: they do not continue each other.
    writes = [write for write in everything if write.gitlab_schema not in PER_DATABASE]
    yield from two_owners(writes)
    yield from lost_writes(histories, writes)
    yield from stale_writes(writes, filled)
    yield from wrong_changes(writes, filled)
    yield from wrong_events(writes, topics, filled)


def no_owners(writes: Iterable[Write]) -> Iterator[Fault]:
    """Yield writes accepted by a database that was not the owner according to its own rows."""
    for write in writes:
        if write.name is None or write.name != write.owner:
            yield Fault("written without ownership", f"{_described(write)}: database {write.name}, owner {write.owner}")


def two_owners(writes: Iterable[Write]) -> Iterator[Fault]:
    """Yield tenures of more than one server, and tenures that overlap."""
    tenures: dict[tuple[str, int], list[Write]] = defaultdict(list)
    for write in writes:
        tenures[write.gitlab_schema, write.epoch].append(write)
    before: tuple[str, Write] | None = None
    for (gitlab_schema, epoch), tenure in sorted(tenures.items()):
        servers = {write.server for write in tenure}
        if len(servers) > 1:
            yield Fault("two owners", f"{gitlab_schema} in epoch {epoch}: {', '.join(sorted(servers))}")
        first, last = min(tenure, key=lambda write: write.at), max(tenure, key=lambda write: write.at)
        if before is not None and before[0] == gitlab_schema and before[1].at > first.at:
            yield Fault("two owners", f"{_described(first)} before {_described(before[1])}")
        before = gitlab_schema, last


def lost_writes(histories: Histories, writes: Sequence[Write]) -> Iterator[Fault]:
    """Yield writes that a later owner of their gitlab schema does not have."""
    inherited = {server: {(write.server, write.sequence) for write in history} for server, history in histories.items()}
    owners: dict[str, list[str]] = defaultdict(list)
    for write in writes:
        known = owners[write.gitlab_schema]
        if write.server not in known:
            known.append(write.server)
    for write in writes:
        known = owners[write.gitlab_schema]
        for later in known[known.index(write.server) + 1 :]:
            if (write.server, write.sequence) not in inherited.get(later, ()):
                yield Fault("missing at the later owner", f"{_described(write)}: {later} lacks it")


def stale_writes(writes: Iterable[Write], filled: Mapping[Key, str]) -> Iterator[Fault]:
    """Yield writes that did not find the row as the previous write had left it."""
    state: dict[Key, str | None] = dict(filled)
    for write in writes:
        key = write.relation, write.id
        if state.get(key) != write.old:
            yield Fault("written on stale data", f"{_described(write)}: found {write.old}, not {state.get(key)}")
        state[key] = write.new


def wrong_changes(writes: Sequence[Write], filled: Mapping[Key, str]) -> Iterator[Fault]:
    """Yield wrong changes of the migration, and rows that it had to change and did not.

    The application never resolves its own requests, so that each wanted row is resolved once: by the migration, or by
    the row's deletion.
    """
    state: dict[Key, str | None] = dict(filled)
    for write in writes:
        was_wanted = write.old is not None and write.old.endswith(WANTED)
        if write.by_migration and not (was_wanted and write.new is not None and write.new.endswith(RESET)):
            yield Fault("changed by the migration but not wanted", f"{_described(write)}: {write.old} to {write.new}")
        state[write.relation, write.id] = write.new
    for (relation, key), value in sorted(state.items()):
        if value is not None and value.endswith(WANTED):
            yield Fault("wanted but never changed", f"{relation} {key}")


def wrong_events(
    writes: Iterable[Write], topics: Mapping[str, Mapping[int, Sequence[Event]]], filled: Mapping[Key, str]
) -> Iterator[Fault]:
    """Yield keys whose events after the first snapshot are not the writes, each once and in order."""
    written: dict[Key, list[Event]] = defaultdict(list)
    for (relation, key), value in filled.items():
        if relation in topics:
            written[relation, key].append(Event("r", value))
    for write in writes:
        if write.relation in topics:
            written[write.relation, write.id].append(Event(write.op, write.new))
    published = {(table, key): list(events) for table, keys in topics.items() for key, events in keys.items()}
    for place in sorted(written.keys() | published.keys()):
        events, wanted = published.get(place, []), written.get(place, [])
        if events != wanted:
            at = next((i for i, (a, b) in enumerate(zip(events, wanted, strict=False)) if a != b), None)
            at = min(len(events), len(wanted)) if at is None else at
            yield Fault(
                "not published once and in order",
                f"{place[0]} {place[1]}: of {len(wanted)} writes and {len(events)} events the {at + 1}. are"
                f" {wanted[at : at + 2]} and {events[at : at + 2]}",
            )


def _described(write: Write) -> str:
    return f"{write.gitlab_schema} ({write.relation} {write.id}) written by {write.server} in epoch {write.epoch}"
