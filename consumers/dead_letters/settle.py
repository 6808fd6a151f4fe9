"""Retries or discards dead letters on an operator's request.

Each is settled in one database transaction, like any event: fence, effect, its row in `headrace.dead_letters`, counts.
A crash before the commit has no effect, and a committed one is not repeated. Events are removed from Kafka much later
(dead_letter_rows.REMOVED_AFTER): a failover that loses the commit reopens the dead letter.
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

from consumers.contract import contract_checks
from consumers.contract.decisions import Change, DeadLetter, Skip
from consumers.contract.declarations import declared
from consumers.contract.migration import Migration
from consumers.delivery import dead_letter_rows
from consumers.delivery.dead_letter_rows import Exclusion, Row
from consumers.delivery.dead_letter_topic import DeadLetterWriter, Entry, Identity, read_dead_letters_topic
from consumers.delivery.topics import schemas_of
from consumers.ledger import fence
from consumers.ledger.error_policy import Action, Rule, reason_of, rule_for
from consumers.ledger.progress import GUARDED, LOCALLY_DURABLE, Ledger, member_name
from consumers.ledger.target import Connection, Target
from consumers.planning.planner import Judgement, Planner
from infra.postgres import connect
from infra.postgres.control import ensure_control_schema
from infra.schema_registry.topic_registry import open_registry
from infra.settings.model import Settings
from infra.state.history import Actor, OperatorAction, operator, record_action
from schemas.errors import UsageError
from schemas.topics import dead_letters_topic

DISCARDED: Final = "discarded"
"""The skip reason of a dead letter that an operator discarded."""

NOT_VISIBLE: Final = "its transaction is not visible yet: retry it later"

_RECOUNT: Final = """
    UPDATE headrace.progress
       SET dead_letters = dead_letters - 1, applied = applied + %(applied)s, skipped = skipped + %(skipped)s,
           skip_reasons = CASE WHEN %(skipped)s = 0 THEN skip_reasons ELSE
               skip_reasons || jsonb_build_object(%(reason)s::text,
                                                  coalesce((skip_reasons ->> %(reason)s)::bigint, 0) + 1) END
     WHERE migration = %(migration)s AND run = %(run)s AND topic = %(topic)s AND partition = %(partition)s
       AND dead_letters > 0
"""

_DISCOUNT: Final = """
    UPDATE headrace.failures f
       SET dead_letters = greatest(0, f.dead_letters - 1), tried = greatest(0, f.tried - %(untried)s)
      FROM headrace.dead_letters d
     WHERE f.migration = %(migration)s AND f.run = %(run)s AND f.failed_at >= d.recorded_at
       AND d.migration = f.migration AND d.run = f.run AND d.topic = %(topic)s AND d.partition = %(partition)s
       AND d.event_offset = %(offset)s
"""
"""The circuit breaker counts since the run's last failure, so a dead letter settled since is deducted from that."""


class Outcome(Enum):
    """The outcome for one entry."""

    APPLIED = "applied"
    UNNEEDED = "unneeded"
    """Its row is already up to date, or the event needs no change."""
    DISCARDED = "discarded"
    BEFORE = "settled before"
    """By another call, or by this one if it lost its connection during the commit."""
    STAYS = "still dead letters"


@dataclass(slots=True)
class Settled:
    """The result of a call; `stays` is name → reason of the events that are still dead letters."""

    applied: int = 0
    unneeded: int = 0
    discarded: int = 0
    before: int = 0
    stays: dict[str, str] = field(default_factory=dict)


def read_dead_letters(settings: Settings, migration: type[Migration] | Migration, database: str) -> list[Entry]:
    """Return the migration's dead letters in `database`, ordered by topic, partition and offset. Writes nothing.

    Raises DatabaseUnavailable or BrokerUnavailable, since it needs both.
    """
    with connect.session(settings.database(database), name=f"list {migration.name}") as connection:
        rows = dead_letter_rows.open_rows(connection, migration, database)
    return dead_letter_rows.entries_of(rows, read_dead_letters_topic(settings, migration.name) if rows else [])


def chosen(migration: str, entries: Sequence[Entry], names: Sequence[str]) -> list[Entry]:
    """Return the `entries` with these `names`, or all without names. Raises UsageError for an unknown name."""
    if not names:
        return list(entries)
    missing = set(names) - {entry.name for entry in entries}
    if missing:
        raise UsageError(
            f"{migration} has no dead letter {min(missing)}", remedy=f"see `headrace dead-letters list {migration}`"
        )
    return [entry for entry in entries if entry.name in names]


def retry(
    settings: Settings,
    migration: Migration,
    database: str,
    names: Sequence[str],
    stopping: threading.Event,
    *,
    actor: Actor | None = None,
) -> Settled:
    """Decide and apply dead letters again, each in its own transaction; those that fail again stay dead letters.

    Retries those with these `names`, or all without names, and applies none twice. They are read under the exclusive
    lock. Raises Busy if another process holds it, UsageError for an unknown name, OwnershipMoved or Paused, and errors
    that waiting cannot resolve; events not settled by then stay dead letters.
    """
    planner = Planner(migration, schemas_of(open_registry(settings)), database)
    lost = DeadLetter(
        f"its event is gone from {dead_letters_topic(settings.prefix, migration.name)}: discard it, and replay"
    )
    return _settle_all(
        settings,
        migration,
        database,
        lambda entries: chosen(migration.name, entries, names),
        stopping,
        lambda entry: (lost, None) if entry.value is None else planner.judge(entry.value),
        actor,
    )


def discard(
    settings: Settings,
    migration: Migration,
    database: str,
    entries: Sequence[Entry],
    stopping: threading.Event,
    *,
    actor: Actor | None = None,
) -> Settled:
    """Discard dead letters, and count them as skipped. Idempotent. Raises as `retry` does."""
    return _settle_all(settings, migration, database, lambda _: list(entries), stopping, None, actor)


def _settle_all(
    settings: Settings,
    migration: Migration,
    database: str,
    choose: Callable[[Sequence[Entry]], list[Entry]],
    stopping: threading.Event,
    decide: Callable[[Entry], Judgement] | None,
    actor: Actor | None,
) -> Settled:
    result = Settled()
    with _target(settings, migration, database, stopping) as target:
        lock = Exclusion(migration.name)

        def begin(connection: Connection) -> tuple[int, list[Row], set[Identity]]:
            lock.hold(connection)
            run = Ledger(migration.name, migration.gitlab_schema, member_name(), declared(migration)).begin(connection)
            rows = dead_letter_rows.open_rows(connection, migration, database)
            return run, rows, dead_letter_rows.removable(connection, migration, database)

        run, rows, old = target.ask(begin)
        kept = read_dead_letters_topic(settings, migration.name) if rows or old else []
        if old:
            DeadLetterWriter(settings, migration.name, database).remove(
                entry for entry in kept if entry.identity in old
            )
            target.ask(lambda connection: dead_letter_rows.forget(connection, migration.name, old))
        settler = _Settler(migration, database, run, decide, lock, actor or operator())
        outcomes: dict[Identity, tuple[str, Outcome, str]] = {}
        pending = choose(dead_letter_rows.entries_of(rows, kept))
        while pending:
            sessions = lock.sessions
            for entry in pending:
                if stopping.is_set():
                    break
                settled = target.ask(lambda connection, entry=entry: settler.settle(connection, entry))  # type: ignore[misc]
                outcomes[entry.identity] = (entry.name, *settled)
            if stopping.is_set() or lock.sessions == sessions:
                break
            # A failover may have lost what the lost session had settled, which is then open again.
            open_again = target.ask(settler.still_open)
            pending = [entry for entry in pending if entry.identity in open_again]
    for name, outcome, reason in outcomes.values():
        _tally(result, name, outcome, reason)
    return result


class _Settler:
    """Settles one entry at a time, for `Target.ask`, which may repeat the call after an error."""

    def __init__(
        self,
        migration: Migration,
        database: str,
        run: int,
        decide: Callable[[Entry], Judgement] | None,
        lock: Exclusion,
        actor: Actor,
    ) -> None:
        self._actor = actor
        self._migration = migration
        self._database = database
        self._run = run
        self._decide = decide
        self._lock = lock
        self._tries: Counter[str] = Counter()

    def settle(self, connection: Connection, entry: Entry) -> tuple[Outcome, str]:
        """Return the outcome for the entry, and the reason if there is one."""
        self._lock.hold(connection)
        decision, xid = self._decide(entry) if self._decide else (Skip(DISCARDED), None)
        if isinstance(decision, DeadLetter):
            return Outcome.STAYS, decision.reason
        try:
            with connection.transaction(), connection.cursor() as cursor:
                return self._write(cursor, entry, decision, xid)
        except psycopg.Error as error:
            if not self._fails_for_good(entry, rule_for(error)):
                raise
            return Outcome.STAYS, reason_of(error)

    def _fails_for_good(self, entry: Entry, rule: Rule) -> bool:
        """Whether the entry stays a dead letter; a mostly transient error is retried first."""
        self._tries[entry.name] += 1
        return rule.action in (Action.SPLIT, Action.DOUBT) or self._tries[entry.name] >= (rule.tries or math.inf)

    def still_open(self, connection: Connection) -> set[Identity]:
        """Return the migration's open dead letters."""
        self._lock.hold(connection)
        rows = dead_letter_rows.open_rows(connection, self._migration, self._database)
        return {entry.identity for entry in dead_letter_rows.entries_of(rows, ())}

    def _write(
        self, cursor: psycopg.Cursor[Any], entry: Entry, decision: Change | Skip, xid: int | None
    ) -> tuple[Outcome, str]:
        cursor.execute(LOCALLY_DURABLE)
        with suppress(*([] if self._decide else [fence.Paused, fence.Failed])):
            hidden = fence.hold(
                cursor,
                migration=self._migration.name,
                run=self._run,
                gitlab_schema=self._migration.gitlab_schema,
                database=self._database,
            )
            if isinstance(decision, Change) and hidden.full(xid) is not None:
                return Outcome.STAYS, NOT_VISIBLE
        if not dead_letter_rows.settle(cursor, self._migration.name, entry):
            return Outcome.BEFORE, ""
        applied = 0
        if isinstance(decision, Change):
            applied = contract_checks.apply(self._migration, cursor, [decision])
            contract_checks.require_held(self._migration, contract_checks.still_held(cursor))
        reason = decision.reason if isinstance(decision, Skip) else GUARDED
        counted = {
            "applied": applied,
            "skipped": 0 if applied else 1,
            "reason": reason,
            "untried": 1 if isinstance(decision, Skip) else 0,
            "migration": self._migration.name,
            "run": entry.run,
            "topic": entry.place.topic,
            "partition": entry.place.partition,
            "offset": entry.offset,
        }
        cursor.execute(_RECOUNT, counted)
        cursor.execute(_DISCOUNT, counted)
        outcome = Outcome.APPLIED if applied else Outcome.UNNEEDED if self._decide else Outcome.DISCARDED
        record_action(
            cursor.connection,
            OperatorAction.RETRY if self._decide else OperatorAction.DISCARD,
            [self._migration.name],
            self._actor,
            event=entry.name,
            outcome=outcome.value,
        )
        return outcome, "" if applied else reason


def _tally(result: Settled, name: str, outcome: Outcome, reason: str) -> None:
    if outcome is Outcome.STAYS:
        result.stays[name] = reason
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
    with connect.session(section, name=f"dead letters {migration.name}") as connection:
        ensure_control_schema(
            connection, database, section.gitlab_schemas, migration.own_tables, prefix=settings.prefix
        )
    target = Target(
        section.address,
        database=database,
        migration=migration.name,
        stopping=stopping,
        wait=stopping.wait,
        search_path=section.search_path,
    )
    try:
        yield target
    finally:
        target.close()
