"""The harness's test build of headrace: its commands with the harness's migrations, in a network namespace, and with a
planted violation where a run has to show that the checker finds it.

Each violation is a function that changes the code of the calling process only.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.chaos.path import namespaces

_EARLY_SECONDS: Final = 0.2
_MIGRATIONS: Final = Path(__file__).parent / "migrations"


def prepare(namespace: str | None, violation: str | None) -> None:
    """Make this process part of the test build; called before anything else."""
    if namespace is not None:
        namespaces.enter(namespace)
    add_migrations()
    if violation is not None:
        VIOLATIONS[violation]()


def add_migrations() -> None:
    """Make the harness's migrations available next to headrace's."""
    import consumers.migrations  # noqa: PLC0415

    if str(_MIGRATIONS) not in consumers.migrations.__path__:
        consumers.migrations.__path__.append(str(_MIGRATIONS))


def _skip_an_event() -> None:
    """The producer omits a change now and then."""
    from producers.publish.capture import Capture  # noqa: PLC0415

    add, numbers = Capture._add, itertools.count(1)

    def skipping(self: Any, route: Any, key: bytes, value: bytes) -> None:
        if next(numbers) % 150:
            add(self, route, key, value)

    _replace(Capture, "_add", skipping)


def _apply_twice() -> None:
    """A consumer applies some changes twice in their transaction."""
    from consumers.contract import contract_checks  # noqa: PLC0415

    apply, numbers = contract_checks.apply, itertools.count(1)

    def twice(migration: Any, cursor: Any, changes: Any) -> int:
        if next(numbers) % 10 == 0:
            apply(migration, cursor, changes[-1:])
        return apply(migration, cursor, changes)

    _replace(contract_checks, "apply", twice)


def _apply_before_visible() -> None:
    """A consumer does not check whether its events' transactions are visible."""
    from consumers.planning.planner import SubBatch  # noqa: PLC0415

    _replace(SubBatch, "waiting", lambda *_: {})


def _commit_the_offset_early() -> None:
    """A consumer commits what it read in Kafka before it applies it."""
    from confluent_kafka import KafkaException, TopicPartition  # noqa: PLC0415

    from consumers.runtime.applying import Applying  # noqa: PLC0415

    process = Applying.process

    def early(self: Any, records: Any) -> None:
        ends = {
            (record.topic(), record.partition()): record.offset() + 1 for record in records if record.error() is None
        }
        if ends:
            offsets = [TopicPartition(*place, offset) for place, offset in ends.items()]
            with contextlib.suppress(KafkaException):
                self._group._consumer.commit(offsets=offsets, asynchronous=False)
        process(self, records)

    _replace(Applying, "process", early)


def _confirm_the_lsn_early() -> None:
    """The producer confirms the LSN of what it read to the slot a moment before it publishes it."""
    from producers.session.commits import Commits  # noqa: PLC0415

    commit = Commits.commit

    def early(self: Any, *arguments: Any, confirm: Any = lambda _: None, **named: Any) -> Any:
        confirm(self._capture.confirmed)
        time.sleep(_EARLY_SECONDS)
        return commit(self, *arguments, confirm=confirm, **named)

    _replace(Commits, "commit", early)


def _ignore_the_fence() -> None:
    """A consumer checks neither who owns the gitlab schema nor whether it is paused."""
    from consumers.ledger import fence  # noqa: PLC0415
    from consumers.ledger.progress import Ledger  # noqa: PLC0415
    from schemas.xid_snapshot import Hidden, Snapshot  # noqa: PLC0415

    statements = fence._statements

    def unlocked(migration: str, gitlab_schema: str) -> tuple[bytes, bytes]:
        return b"SELECT", statements(migration, gitlab_schema)[1]

    def unchecked(cursor: Any, *_: object) -> Hidden:
        *_, snapshot, xid, _ = cursor.fetchone()
        return Hidden(Snapshot.parse(snapshot), xid)

    _replace(fence, "_statements", unlocked)
    _replace(fence, "_held", unchecked)
    _replace(Ledger, "wishes", lambda *_: lambda *_: fence.Wishes())


def _lose_the_ledgers_last_commit() -> None:
    """The ledger of a killed consumer goes back to where it was a moment before."""
    from consumers.ledger.progress import Ledger  # noqa: PLC0415

    begin, starts = Ledger.begin, itertools.count()

    def rewound(self: Any, connection: Any) -> int:
        run = begin(self, connection)
        if next(starts):
            return run
        connection.execute(
            "UPDATE headrace.progress SET next_offset = greatest(0, next_offset - 3) WHERE migration = %s",
            (self._migration,),
        )
        return run

    _replace(Ledger, "begin", rewound)


def _repair_silently() -> None:
    """skip_resets omits a row now and then, and repairs all omitted rows in a later transaction."""
    from consumers.migrations.skip_resets import SkipResets  # noqa: PLC0415

    apply, numbers = SkipResets.apply, itertools.count(1)

    def sweeping(self: Any, cursor: Any, changes: Any) -> int:
        if next(numbers) % 5 == 0:
            cursor.execute(
                "UPDATE public.container_repositories SET migration_state = 'default', migration_skipped_reason = NULL"
                " WHERE migration_state = 'import_skipped' AND migration_skipped_reason = 2"
            )
            return min(len(changes), int(cursor.rowcount))
        return apply(self, cursor, changes[1:]) if len(changes) > 1 else apply(self, cursor, changes)

    _replace(SkipResets, "apply", sweeping)


VIOLATIONS: Final[dict[str, Callable[[], None]]] = {
    "skip an event": _skip_an_event,
    "apply twice": _apply_twice,
    "apply before visible": _apply_before_visible,
    "commit the offset early": _commit_the_offset_early,
    "confirm the LSN early": _confirm_the_lsn_early,
    "ignore the fence": _ignore_the_fence,
    "lose the ledger's last commit": _lose_the_ledgers_last_commit,
    "repair silently": _repair_silently,
}


def _replace(owner: Any, name: str, replacement: Callable[..., Any]) -> None:
    setattr(owner, name, functools.wraps(getattr(owner, name))(replacement))
