"""What becomes of parked events by a person's word: applied after all, or discarded.

Each is settled in one database transaction, like any event, together with a row of `headrace.settled`; the entry in
the parked topic goes afterwards. Whatever dies between the two, the next call finds the row and does nothing twice.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

import psycopg

from consumers import contract_checks, fence
from consumers.batches import Planner
from consumers.decisions import Change, Decision, Park, Skip
from consumers.error_policy import Action, Rule, reason_of, rule_for
from consumers.group import member_name
from consumers.inputs import schemas_of
from consumers.ledger import GUARDED, Ledger
from consumers.migration import Migration
from consumers.parking import Entry, Parking, read_parked
from consumers.target import Connection, Target
from infra import postgres
from infra.control import ensure_control_schema
from infra.registry import open_registry
from infra.settings import Settings
from schemas.errors import UsageError

DISCARDED: Final = "discarded"
"""The reason under which the ledger counts what a person discarded."""

_TOGETHER: Final = 200
"""How many entries leave the parked topic at a time."""

_SETTLE: Final = """
    INSERT INTO headrace.settled AS s (migration, event, entry) VALUES (%s, %s, %s)
    ON CONFLICT (migration, event) DO UPDATE SET entry = excluded.entry WHERE s.entry <> excluded.entry
"""
_FORGET: Final = """
    DELETE FROM headrace.settled s USING unnest(%s::text[], %s::text[]) AS gone(event, entry)
     WHERE s.migration = %s AND s.event = gone.event AND s.entry = gone.entry
"""
_RECOUNT: Final = """
    UPDATE headrace.progress
       SET parked = parked - 1, applied = applied + %(applied)s, skipped = skipped + %(skipped)s,
           skip_reasons = CASE WHEN %(skipped)s = 0 THEN skip_reasons ELSE
               skip_reasons || jsonb_build_object(%(reason)s::text,
                                                  coalesce((skip_reasons ->> %(reason)s)::bigint, 0) + 1) END
     WHERE migration = %(migration)s AND run = %(run)s AND topic = %(topic)s AND partition = %(partition)s
       AND parked > 0
"""


class Outcome(Enum):
    """What became of one entry."""

    APPLIED = "applied"
    UNNEEDED = "unneeded"
    """Its row is right already, or the event asks for nothing."""
    DISCARDED = "discarded"
    BEFORE = "settled before"
    """By a call that died before it could take the entry out."""
    STAYS = "still parked"


@dataclass(slots=True)
class Settled:
    """What a call did; `stays` has the reasons of the events that are still parked, by their names."""

    applied: int = 0
    unneeded: int = 0
    discarded: int = 0
    before: int = 0
    stays: dict[str, str] = field(default_factory=dict)


def chosen(settings: Settings, migration: str, names: Sequence[str]) -> list[Entry]:
    """Return the parked entries called `names`, all without names. Raises UsageError for one that is not there."""
    entries = read_parked(settings, migration)
    if not names:
        return entries
    known = {entry.name: entry for entry in entries}
    for name in names:
        if name not in known:
            raise UsageError(
                f"{migration} has no parked event {name}", remedy=f"see `headrace parked list {migration}`"
            )
    return [known[name] for name in dict.fromkeys(names)]


def retry(
    settings: Settings, migration: Migration, database: str, entries: Sequence[Entry], stopping: threading.Event
) -> Settled:
    """Decide and apply parked events again, each in a transaction of its own; those that fail again stay parked.

    A second call, or one at the same time, applies nothing twice. Raises OwnershipMoved or Paused, with every event
    not settled yet still parked; and what waiting cannot mend.
    """
    planner = Planner(migration, schemas_of(open_registry(settings)), database)
    return _settle_all(
        settings, migration, database, entries, stopping, lambda entry: planner.judge(entry.value).decision
    )


def discard(
    settings: Settings, migration: Migration, database: str, entries: Sequence[Entry], stopping: threading.Event
) -> Settled:
    """Take parked events out for good, and count them as skipped; a second call does nothing."""
    return _settle_all(settings, migration, database, entries, stopping, None)


def _settle_all(
    settings: Settings,
    migration: Migration,
    database: str,
    entries: Sequence[Entry],
    stopping: threading.Event,
    decide: Callable[[Entry], Decision] | None,
) -> Settled:
    result = Settled()
    parking = Parking(settings, migration.name)
    with _target(settings, migration, database, stopping) as target:
        ledger = Ledger(migration.name, migration.gitlab_schema, member_name())
        run = target.ask(ledger.begin)
        settler = _Settler(migration, database, run, decide)
        for start in range(0, len(entries), _TOGETHER):
            gone: list[Entry] = []
            for entry in entries[start : start + _TOGETHER]:
                if stopping.is_set():
                    break
                outcome = target.ask(lambda connection, entry=entry: settler.settle(connection, entry))  # type: ignore[misc]
                _tally(result, entry, *outcome)
                if outcome[0] is not Outcome.STAYS:
                    gone.append(entry)
            if gone:
                parking.remove(gone)
                target.ask(lambda connection, gone=gone: _forget(connection, migration.name, gone))  # type: ignore[misc]
            if stopping.is_set():
                break
    return result


class _Settler:
    """Settles one entry at a time, for `Target.ask`, which may call again after an error."""

    def __init__(
        self, migration: Migration, database: str, run: int, decide: Callable[[Entry], Decision] | None
    ) -> None:
        self._migration = migration
        self._database = database
        self._run = run
        self._decide = decide
        self._tries: Counter[str] = Counter()

    def settle(self, connection: Connection, entry: Entry) -> tuple[Outcome, str]:
        """Return what became of the entry, and the reason where there is one."""
        decision = self._decide(entry) if self._decide else Skip(DISCARDED)
        if isinstance(decision, Park):
            return Outcome.STAYS, decision.reason
        try:
            with connection.transaction(), connection.cursor() as cursor:
                return self._write(cursor, entry, decision)
        except psycopg.Error as error:
            if not self._fails_for_good(entry, rule_for(error)):
                raise
            return Outcome.STAYS, reason_of(error)

    def _fails_for_good(self, entry: Entry, rule: Rule) -> bool:
        """Whether the entry stays, whatever else is retried: one that passes by itself, mostly, has had its tries."""
        self._tries[entry.name] += 1
        return rule.action in (Action.SPLIT, Action.DOUBT) or self._tries[entry.name] >= (rule.tries or math.inf)

    def _write(self, cursor: psycopg.Cursor[Any], entry: Entry, decision: Change | Skip) -> tuple[Outcome, str]:
        # The entry goes only after a commit that no crash of the server takes back.
        cursor.execute("SET LOCAL synchronous_commit = on")
        with suppress(*([] if self._decide else [fence.Paused, fence.Failed])):
            fence.hold(
                cursor,
                migration=self._migration.name,
                run=self._run,
                gitlab_schema=self._migration.gitlab_schema,
                database=self._database,
            )
        cursor.execute(_SETTLE, (self._migration.name, entry.name, _identity(entry)))
        if cursor.rowcount == 0:
            return Outcome.BEFORE, ""
        applied = 0
        if isinstance(decision, Change):
            applied = contract_checks.apply(self._migration, cursor, [decision])
            contract_checks.require_held(self._migration, contract_checks.still_held(cursor))
        reason = decision.reason if isinstance(decision, Skip) else GUARDED
        if entry.run == self._run:
            cursor.execute(
                _RECOUNT,
                {
                    "applied": applied,
                    "skipped": 0 if applied else 1,
                    "reason": reason,
                    "migration": self._migration.name,
                    "run": self._run,
                    "topic": entry.place.topic,
                    "partition": entry.place.partition,
                },
            )
        if applied:
            return Outcome.APPLIED, ""
        return (Outcome.UNNEEDED if self._decide else Outcome.DISCARDED), reason


def _identity(entry: Entry) -> str:
    return f"{entry.parked_at_offset}@{entry.parked_ms}"


def _forget(connection: Connection, migration: str, entries: Sequence[Entry]) -> None:
    names, identities = [entry.name for entry in entries], [_identity(entry) for entry in entries]
    connection.execute(_FORGET, (names, identities, migration))


def _tally(result: Settled, entry: Entry, outcome: Outcome, reason: str) -> None:
    if outcome is Outcome.STAYS:
        result.stays[entry.name] = reason
    elif outcome is Outcome.APPLIED:
        result.applied += 1
    elif outcome is Outcome.UNNEEDED:
        result.unneeded += 1
    elif outcome is Outcome.DISCARDED:
        result.discarded += 1
    else:
        result.before += 1


@contextmanager
def _target(settings: Settings, migration: Migration, database: str, stopping: threading.Event) -> Iterator[Target]:
    section = settings.database(database)
    dsn = section.dsn.get_secret_value()
    with postgres.translated(dsn), postgres.connect(dsn, name=f"parked {migration.name}") as connection:
        ensure_control_schema(
            connection, database, section.gitlab_schemas, migration.own_tables, prefix=settings.prefix
        )
    target = Target(dsn, database=database, migration=migration.name, stopping=stopping, wait=stopping.wait)
    try:
        yield target
    finally:
        target.close()
