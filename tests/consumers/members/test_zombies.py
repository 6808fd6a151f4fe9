"""A zombie, which the group considers dead, writes nothing of partitions it lost; triggers log every write."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest

from consumers.operations.group_admin import members as group_members
from consumers.testing.waiting import PATIENCE, until
from infra.settings.model import Settings
from schemas.topics import group_name
from tests.conftest import Database
from tests.consumers.conftest import Member
from tests.consumers.container_repositories import TOO_MANY_TAGS, Feed, fill, start_impatient_member, states, written
from tests.consumers.members.freezing import backends, freeze_between_transactions

pytestmark = pytest.mark.stack

Start = Callable[[], Member]
Ledger = Callable[[], Mapping[str, Any]]

ROWS = dict.fromkeys(range(400), TOO_MANY_TAGS)


@pytest.fixture
def start(config: Path) -> Iterator[Start]:
    """A function that starts a consumer with small transactions and a pause after each."""
    started: list[Member] = []
    config.write_text(config.read_text() + "pause_ms = 30\nadaptive = false\n")

    def member() -> Member:
        started.append(start_impatient_member(config))
        return started[-1]

    yield member
    for each in started:
        each.send_signal(signal.SIGCONT)
        each.kill()
        print(each.communicate()[1])


def finish(member: Member) -> str:
    """Stop a consumer in order; return its log."""
    member.send_signal(signal.SIGTERM)
    _, log = member.communicate(timeout=PATIENCE)
    assert member.returncode == 0, log
    return log


@pytest.fixture
def dropped(settings: Settings) -> Callable[[], None]:
    """A function that waits until the group has no group member left."""
    group = group_name(settings.prefix, "skip_resets")

    def wait() -> None:
        until(lambda: group_members(settings.kafka, group) == [], "Kafka removes the frozen group member")

    return wait


def test_consumer_frozen_with_a_batch_writes_nothing_when_it_wakes(
    feed: Feed,
    connection: psycopg.Connection[Any],
    start: Start,
    dropped: Callable[[], None],
    ledger: Ledger,
) -> None:
    fill(connection, ROWS)
    feed.snapshot(ROWS)
    zombie = start()
    until(lambda: written(connection), "it works")
    freeze_between_transactions(zombie, connection)
    dropped()
    other = start()
    until(lambda: len(written(connection)) == len(ROWS), "the other one applies the rest")
    # Every row needs a change again, so that the guard would admit a write by the zombie's old events.
    connection.execute(
        "UPDATE container_repositories SET migration_state = 'import_skipped', migration_skipped_reason = 2"
    )
    before = written(connection)
    zombie.send_signal(signal.SIGCONT)
    group = group_name(feed.settings.prefix, "skip_resets")
    until(lambda: len(group_members(feed.settings.kafka, group)) == 2, "the zombie rejoins")
    feed.snapshot({1_000: TOO_MANY_TAGS})
    until(lambda: ledger()["skipped"] == 1, "both continue")
    logs = [finish(zombie), finish(other)]
    assert written(connection) == before
    assert ledger()["applied"] == len(ROWS)
    assert "Traceback" not in "".join(logs)


@pytest.mark.long
@pytest.mark.parametrize("released", [True, False], ids=["its statement ends meanwhile", "its statement times out"])
def test_effects_happen_once_if_consumer_is_frozen_in_its_transaction(
    feed: Feed,
    connection: psycopg.Connection[Any],
    database: Database,
    start: Start,
    dropped: Callable[[], None],
    ledger: Ledger,
    released: bool,
) -> None:
    fill(connection, ROWS)
    blocker = database.connect()
    with blocker.transaction():
        blocker.execute("SELECT FROM container_repositories ORDER BY id FOR UPDATE")
        feed.snapshot(ROWS)
        zombie = start()
        until(lambda: ("active", "Lock") in backends(connection).values(), "it waits for a row in its apply")
        ((pid, _),) = backends(connection).items()
        zombie.send_signal(signal.SIGSTOP)
        if not released:
            # Its lock_timeout ends the statement while the process is frozen.
            until(lambda: backends(connection)[pid][0] == "idle in transaction (aborted)", "the statement ends")
    if released:
        until(lambda: backends(connection)[pid][0] == "idle in transaction", "its writes are made, uncommitted")
    dropped()
    assert written(connection) == []
    other = start()
    if released:
        until(lambda: ("active", "Lock") in backends(connection).values(), "the other waits for the zombie's rows")
    else:
        until(lambda: len(written(connection)) == len(ROWS), "the other does it all")
    zombie.send_signal(signal.SIGCONT)
    until(lambda: len(written(connection)) == len(ROWS), "all is done")
    until(lambda: ledger()["applied"] == len(ROWS), "all is counted")
    logs = [finish(zombie), finish(other)]
    assert sorted(written(connection)) == sorted(ROWS), "each row once"
    assert set(states(connection).values()) == {("default", None)}
    assert (ledger()["applied"], ledger()["skipped"], ledger()["dead_letters"]) == (len(ROWS), 0, 0)
    assert "Traceback" not in "".join(logs)
