"""Dead letters are listed, retried once and discarded, across crashes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psycopg
import pytest

from consumers.contract.decisions import Change
from consumers.contract.migration import Cursor
from consumers.dead_letters.settle import chosen, discard, read_dead_letters, retry
from consumers.ledger.fence import Paused
from consumers.migrations.skip_resets import SkipResets
from infra.settings.model import Settings
from schemas.errors import OwnershipMoved, UsageError
from tests.consumers.container_repositories import DEFAULT, TOO_MANY_TAGS, Feed, fill, states, written

pytestmark = pytest.mark.stack

NAME = "skip_resets"
FORBID = "ALTER TABLE container_repositories ADD CONSTRAINT poison CHECK (id <> 77 OR migration_state <> 'default')"
ALLOW = "ALTER TABLE container_repositories DROP CONSTRAINT poison"
CatchUp = Callable[..., Any]
Ledger = Callable[[], Mapping[str, Any]]


@pytest.fixture
def migration(settings: Settings) -> SkipResets:
    made = SkipResets.configure(settings.migration(NAME))
    assert isinstance(made, SkipResets)
    return made


@pytest.fixture
def stopping() -> threading.Event:
    return threading.Event()


@pytest.fixture
def poisoned(feed: Feed, connection: psycopg.Connection[Any], catch_up: CatchUp) -> None:
    """Rows of which a constraint rejects the reset of number 77, whose event becomes a dead letter."""
    connection.execute(FORBID)
    rows = dict.fromkeys((76, 77, 78), TOO_MANY_TAGS)
    fill(connection, rows)
    feed.snapshot(rows)
    catch_up()


def test_one_dead_letter_of_10_000_events_is_retried_and_applied_once(
    feed: Feed,
    connection: psycopg.Connection[Any],
    catch_up: CatchUp,
    ledger: Ledger,
    settings: Settings,
    migration: SkipResets,
    stopping: threading.Event,
) -> None:
    connection.execute(FORBID)
    rows = dict.fromkeys(range(10_000), TOO_MANY_TAGS)
    fill(connection, rows)
    feed.snapshot(rows)
    catch_up(settings.model_copy(update={"migrations": {}}))

    assert sorted(written(connection)) == [key for key in rows if key != 77]
    (dead_letters,) = read_dead_letters(settings, SkipResets, "main")
    assert dead_letters.reason == "23514 CheckViolation constraint poison table container_repositories"
    assert dead_letters.name == f"main/{dead_letters.place.topic}/{dead_letters.place.partition}/{dead_letters.offset}"
    assert dead_letters.place.topic == feed.topic
    assert ledger()["dead_letters"] == 1

    early = retry(settings, migration, "main", [dead_letters.name], stopping)
    assert early.stays == {dead_letters.name: dead_letters.reason}
    assert ledger()["dead_letters"] == 1

    connection.execute(ALLOW)
    assert retry(settings, migration, "main", [], stopping).applied == 1
    assert sorted(written(connection)) == sorted(rows)
    assert read_dead_letters(settings, SkipResets, "main") == []
    counts = ledger()
    assert (counts["applied"], counts["skipped"], counts["dead_letters"]) == (10_000, 0, 0)


class DiesInTheTransaction(SkipResets):
    """Loses its connection once, after its writes and before the commit."""

    died = False

    def apply(self, cursor: Cursor, changes: Sequence[Change]) -> int:
        applied = super().apply(cursor, changes)
        if not self.died:
            self.died = True
            cursor.connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        return applied


def test_connection_lost_during_retry_loses_nothing(
    poisoned: None, connection: psycopg.Connection[Any], settings: Settings, stopping: threading.Event
) -> None:
    connection.execute(ALLOW)
    dying = DiesInTheTransaction.configure(settings.migration(NAME))
    assert retry(settings, dying, "main", [], stopping).applied == 1
    assert written(connection).count(77) == 1


def test_retry_does_not_write_row_already_up_to_date(
    poisoned: None,
    connection: psycopg.Connection[Any],
    ledger: Ledger,
    settings: Settings,
    migration: SkipResets,
    stopping: threading.Event,
) -> None:
    connection.execute("UPDATE container_repositories SET migration_state = 'importing' WHERE id = 77")
    done = retry(settings, migration, "main", [], stopping)
    assert (done.applied, done.unneeded) == (0, 1)
    assert states(connection)[77] == ("importing", 2)
    assert (ledger()["applied"], ledger()["skipped"], ledger()["dead_letters"]) == (2, 1, 0)


def test_retry_is_refused_without_ownership_or_while_paused(
    poisoned: None,
    connection: psycopg.Connection[Any],
    settings: Settings,
    migration: SkipResets,
    stopping: threading.Event,
) -> None:
    connection.execute(ALLOW)
    entries = read_dead_letters(settings, SkipResets, "main")
    connection.execute("UPDATE headrace.migrations SET paused = true")
    with pytest.raises(Paused):
        retry(settings, migration, "main", [], stopping)
    connection.execute("UPDATE headrace.migrations SET paused = false")
    connection.execute("UPDATE headrace.schema_ownership SET owner = 'ci', epoch = 2")
    with pytest.raises(OwnershipMoved):
        retry(settings, migration, "main", [], stopping)
    assert written(connection).count(77) == 0
    assert read_dead_letters(settings, SkipResets, "main") == entries


def test_discard_settles_named_dead_letter_and_counts_it(
    feed: Feed,
    connection: psycopg.Connection[Any],
    catch_up: CatchUp,
    ledger: Ledger,
    settings: Settings,
    migration: SkipResets,
    stopping: threading.Event,
) -> None:
    feed.send([(b"a", b"nonsense"), (b"b", b"more nonsense"), feed.upsert(1, *DEFAULT)])
    catch_up()
    first, second = read_dead_letters(settings, SkipResets, "main")
    connection.execute("UPDATE headrace.migrations SET paused = true")

    assert (
        discard(
            settings,
            migration,
            "main",
            chosen(NAME, read_dead_letters(settings, SkipResets, "main"), [first.name]),
            stopping,
        ).discarded
        == 1
    )

    assert read_dead_letters(settings, SkipResets, "main") == [second]
    assert (ledger()["skipped"], ledger()["dead_letters"]) == (2, 1)
    reasons = connection.execute("SELECT skip_reasons FROM headrace.progress WHERE skip_reasons ? 'discarded'")
    assert [found["discarded"] for (found,) in reasons] == [1]
    with pytest.raises(UsageError, match="has no dead letter"):
        chosen(NAME, read_dead_letters(settings, SkipResets, "main"), [first.name])
