"""Gathers what is recorded of a run: from its database, and from Kafka where the topics end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, LiteralString, NamedTuple

import psycopg

from consumers.contract import counting
from consumers.contract.counting import Count
from consumers.contract.external import WorkStatus
from consumers.contract.migration import Migration
from consumers.dead_letters.given_up import read_work_status
from consumers.delivery import dead_letter_rows
from consumers.delivery.dead_letter_topic import Entry
from consumers.delivery.topics import source_topics
from consumers.ledger.progress import Place
from consumers.operations.group_admin import members
from consumers.operations.status import recorded, state_of
from infra.kafka import topics
from infra.postgres import connect, control
from infra.settings.model import Settings
from infra.state.history import History, HistoryEntry, whole_history
from schemas.errors import HeadraceError, UsageError
from schemas.lazy_dataclass import dataclass
from schemas.topics import group_name

Connection = psycopg.Connection[Any]

_COUNT_MS: Final = 10_000
"""How long the server may count the remaining rows; after that the planner's estimate is reported."""
_ACTIONS: Final = 10_000

_TABLES: Final = """
    SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname = 'headrace' AND c.relkind = 'r'
"""
_NOW: Final = "SELECT clock_timestamp(), current_setting('server_version')"
_RUN: Final = "SELECT run, run_reason, started_at, completed_at, declared FROM headrace.migrations WHERE name = %s"
_RUN_COLUMNS: Final = ("reason", "started", "completed", "declared")
_SUMS: Final = """
    SELECT coalesce(sum(applied), 0)::bigint, coalesce(sum(skipped), 0)::bigint, coalesce(sum(dead_letters), 0)::bigint,
           count(*), max(updated_at)
      FROM headrace.progress WHERE migration = %s AND run = %s
"""
_REASONS: Final = """
    SELECT r.key, sum(r.value::bigint)::bigint FROM headrace.progress p, jsonb_each_text(p.skip_reasons) r
     WHERE p.migration = %s AND p.run = %s GROUP BY r.key ORDER BY 2 DESC, 1
"""
_OFFSETS: Final = "SELECT topic, partition, next_offset FROM headrace.progress WHERE migration = %s AND run = %s"
_SAMPLES: Final = """
    SELECT at, events, applied, skipped, dead_letters FROM headrace.samples
     WHERE migration = %s AND run = %s ORDER BY at
"""
_PERIODS: Final = """
    SELECT since, until, member, reason FROM headrace.throttle_periods
     WHERE migration = %(name)s AND until >= %(begin)s AND since <= %(end)s
     UNION ALL
    SELECT since, seen_at, member, reason FROM headrace.throttles
     WHERE migration = %(name)s AND seen_at >= %(begin)s AND since <= %(end)s
     ORDER BY 1
"""
"""The second part are consumers that are throttled now, or were when they were killed."""
_FAILURES: Final = """
    SELECT failed_at, reason FROM headrace.failures WHERE migration = %s AND run = %s ORDER BY failed_at
"""
_SETTLED: Final = """
    SELECT count(*) FROM headrace.dead_letters WHERE migration = %s AND run = %s AND settled_at IS NOT NULL
"""


class UnknownRun(UsageError):
    """Choose one of the runs that `headrace status` shows; the first is 1."""


class Sample(NamedTuple):
    """The counts of a run at a moment; `events` is the sum of the others."""

    at: datetime
    events: int
    applied: int
    skipped: int
    dead_letters: int


class Period(NamedTuple):
    """When a consumer was throttled, or the migration was paused, and why."""

    since: datetime
    until: datetime
    who: str
    reason: str


class Failure(NamedTuple):
    """When most changes of the run had become dead letters."""

    at: datetime
    reason: str


@dataclass(frozen=True)
class Facts:
    """What is known of one run at `now`, by the clock of its database's server; None is not known."""

    name: str
    database: str
    gitlab_schema: str
    tables: Sequence[str]
    run: int
    current: bool
    """Whether it is the migration's last run; the state, what remains and the dead letters are those of the last."""
    state: str
    run_reason: str | None
    declared: Mapping[str, Any]
    started: datetime | None
    completed: datetime | None
    ended: datetime | None
    """When the next run began; `now` for the last run."""
    last_progress: datetime | None
    now: datetime
    server_version: str
    last: Sample
    """The run's counts now, at its last progress; at `now` if it has none."""
    partitions: int
    passed: int | None
    end_sum: int | None
    """How far the run is in the topics, and where they end now: sums of offsets, those of removed records included."""
    samples: Sequence[Sample]
    skip_reasons: Mapping[str, int]
    throttled: Sequence[Period]
    paused: Sequence[Period]
    failures: Sequence[Failure]
    open_dead_letters: Sequence[Entry]
    settled_dead_letters: int
    remaining: Count
    work: WorkStatus | None
    """None: it has no work outside the database."""
    actions: Sequence[HistoryEntry]
    problems: Sequence[str]
    """What could not be asked, one line each."""

    @property
    def events(self) -> int:
        """How many events the run has passed."""
        return self.last.events


def gather_facts(settings: Settings, migration: Migration, database: str, run: int | None = None) -> Facts:
    """Return what is known of a run of `migration`, by default the last. Writes nothing.

    Counting takes ten seconds at most, and Kafka need not answer. Raises UnknownRun for one that never was,
    DatabaseUnavailable, OtherPrefix and NewerFormat.
    """
    problems: list[str] = []
    topics_now = _topics_now(settings, migration, database, problems)
    history = whole_history(settings, subjects=subjects_of(migration, database), limit=_ACTIONS)
    problems += [f"database {name} did not answer, so its history is missing" for name in history.missing]
    with connect.session(settings.database(database), name=f"report {migration.name}") as connection:
        control.require_prefix(connection, database, settings.prefix)
        return _Reading(connection, migration, database, problems).facts(run, topics_now, history)


def subjects_of(migration: Migration, database: str) -> list[str]:
    """Return the subjects of the history that concern a migration."""
    return [migration.name, migration.gitlab_schema, database, *migration.tables]


def paused_periods(actions: Sequence[HistoryEntry], name: str, end: datetime) -> list[Period]:
    """Return when an operator had paused the migration, by its recorded actions; until `end` if it still is."""
    found: list[Period] = []
    begun: HistoryEntry | None = None
    for entry in actions:
        if entry.subject == name and entry.action == "pause":
            begun = begun or entry
        elif entry.subject == name and entry.action == "resume" and begun is not None:
            found.append(Period(begun.at, entry.at, begun.actor, begun.reason or ""))
            begun = None
    if begun is not None:
        found.append(Period(begun.at, max(begun.at, end), begun.actor, begun.reason or ""))
    return found


@dataclass(frozen=True)
class _Topics:
    """The ends of the topics now, and whether consumers are in the group; `ends` is None if Kafka does not answer."""

    ends: Mapping[Place, int] | None
    alive: bool = False


def _topics_now(settings: Settings, migration: Migration, database: str, problems: list[str]) -> _Topics:
    try:
        alive = bool(members(settings.kafka, group_name(settings.prefix, migration.name)))
        ends = {
            Place(topic, partition): end
            for topic in source_topics(settings, migration, database)
            for partition, end in topics.end_offsets(settings.kafka, topic).items()
        }
    except HeadraceError as error:
        problems.append(f"how much the topics hold is not known: {error.problem}")
        return _Topics(None)
    return _Topics(ends, alive)


class _Reading:
    """Reads one migration's records in its database."""

    def __init__(self, connection: Connection, migration: Migration, database: str, problems: list[str]) -> None:
        self._connection = connection
        self._migration = migration
        self._name = migration.name
        self._database = database
        self._problems = problems
        self._there = {name for (name,) in connection.execute(_TABLES)}

    def facts(self, wanted: int | None, topics_now: _Topics, history: History) -> Facts:
        """Return the facts of run `wanted`, or of the last. Raises UnknownRun."""
        run, current, recorded_of_run = self._run(wanted)
        applied, skipped, dead_letters, partitions, updated = self._one(_SUMS, run)
        if not current and not partitions:
            raise UnknownRun(f"{self._name} has no run {run}")
        now, server_version = self._one(_NOW)
        samples = [Sample(*each) for each in self._of("samples", _SAMPLES, run)]
        began = recorded_of_run["started"] or _moment_of_replay(history, run) or (samples[0].at if samples else None)
        end = now if current else _moment_of_replay(history, run + 1) or updated
        actions = [
            each for each in history.entries if (began is None or each.at >= began) and (current or each.at < end)
        ]
        window = {"name": self._name, "begin": began or end, "end": end}
        at = {Place(topic, partition): next_ for topic, partition, next_ in self._of("progress", _OFFSETS, run)}
        ends = topics_now.ends
        work = read_work_status(self._connection, self._migration) if self._migration.own_tables else None
        return Facts(
            name=self._name,
            database=self._database,
            gitlab_schema=self._migration.gitlab_schema,
            tables=self._migration.tables,
            run=run,
            current=current,
            state=self._state(at, topics_now, work) if current else "replaced",
            run_reason=recorded_of_run["reason"],
            declared=recorded_of_run["declared"] or {},
            started=began,
            completed=recorded_of_run["completed"],
            ended=end,
            last_progress=updated,
            now=now,
            server_version=server_version.split()[0],
            last=Sample(updated or now, applied + skipped + dead_letters, applied, skipped, dead_letters),
            partitions=partitions,
            passed=None if ends is None else sum(min(at.get(place, 0), each) for place, each in ends.items()),
            end_sum=None if ends is None else sum(ends.values()),
            samples=samples,
            skip_reasons=dict(self._of("progress", _REASONS, run)),
            throttled=[Period(*each) for each in self._periods(window)],
            paused=paused_periods(actions, self._name, end),
            failures=[Failure(*each) for each in self._of("failures", _FAILURES, run)],
            open_dead_letters=self._open_dead_letters(None if current else run),
            settled_dead_letters=sum(count for (count,) in self._of("dead_letters", _SETTLED, run)),
            remaining=self._remaining() if current else Count(None),
            work=work,
            actions=actions,
            problems=self._problems,
        )

    def _run(self, wanted: int | None) -> tuple[int, bool, dict[str, Any]]:
        """Return the run, whether it is the last, and what is recorded of it, which is of the last only."""
        found = self._of("migrations", _RUN) if "migrations" in self._there else []
        if not found:
            raise UnknownRun(
                f"{self._name} has never run in {self._database}",
                remedy=f"start it with `headrace consume {self._name}`",
            )
        newest, *columns = found[0]
        if wanted in (None, newest):
            return newest, True, dict(zip(_RUN_COLUMNS, columns, strict=True))
        if not 1 <= (run := wanted or 0) < newest:
            raise UnknownRun(f"{self._name} has no run {run}: the last is {newest}")
        return run, False, dict.fromkeys(_RUN_COLUMNS)

    def _of(self, table: str, query: LiteralString, *run: int) -> list[tuple[Any, ...]]:
        if table not in self._there:
            self._problems.append(f"headrace.{table} is missing until a service of this version has started")
            return []
        return self._connection.execute(query, (self._name, *run)).fetchall()

    def _one(self, query: LiteralString, *run: int) -> tuple[Any, ...]:
        row = self._connection.execute(query, (self._name, *run) if run else None).fetchone()
        assert row is not None
        return tuple(row)

    def _periods(self, window: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        if "throttle_periods" not in self._there:
            self._problems.append("headrace.throttle_periods is missing until a service of this version has started")
            return []
        return self._connection.execute(_PERIODS, window).fetchall()

    def _state(self, at: Mapping[Place, int], topics_now: _Topics, work: WorkStatus | None) -> str:
        found = recorded(self._connection, self._name)
        if topics_now.ends is None and not (found.failed or found.paused or found.complete):
            return "unknown"
        ends = topics_now.ends or {}
        left = sum(max(0, each - at.get(place, 0)) for place, each in ends.items())
        given_up = work.given_up if work is not None else 0
        return state_of(found, alive=topics_now.alive, topics=bool(ends), left=left, given_up=given_up)

    def _open_dead_letters(self, run: int | None) -> list[Entry]:
        rows = dead_letter_rows.open_rows(self._connection, self._migration, self._database)
        return [each for each in dead_letter_rows.entries_of(rows, ()) if run in (None, each.run)]

    def _remaining(self) -> Count:
        try:
            return counting.count(self._connection, self._migration, limit_ms=_COUNT_MS)
        except Exception as error:
            # What a migration counts with is its author's, and a report without the number is still one.
            if self._connection.closed:
                raise
            self._problems.append(f"the rows that are left could not be counted: {counting.failed(error)}")
            return Count(None)


def _moment_of_replay(history: History, run: int) -> datetime | None:
    """Return when a replay started `run`, by its recorded action."""
    return next(
        (each.at for each in history.entries if each.action == "replay" and each.details.get("run") == run), None
    )
