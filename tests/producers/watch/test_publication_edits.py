"""Edits of the publication by another session, even reverted ones, never lose changes silently."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from consumers.testing.waiting import until
from infra.state.positions import Positions
from infra.state.snapshot_requests import SnapshotRequest
from producers.session import acquire, opening
from producers.session.check import hindrances
from producers.session.loop import Session
from producers.session.resnapshot_request import ask
from producers.session.start_over import start_over
from producers.source import schema_changes
from producers.source.gaps import SilentGap
from producers.source.schema_changes import TableStopped
from producers.source.slots import sessions_of
from producers.source.tables import CapturedTable
from producers.stream.connection import ReplicationStream
from tests.producers.sources import OFTEN, Running, Source, copy_all, running

pytestmark = pytest.mark.stack

NewSource = Callable[..., Source]

NAMES = ("a", "b", "c", "d")
TABLES = "".join(
    f"CREATE TABLE {name} (id int PRIMARY KEY, v text); INSERT INTO {name} VALUES (1, 'x');" for name in NAMES
)
LOST = "INSERT INTO {0} VALUES (2, 'lost');"
TAKE_OUT, PUT_BACK = "ALTER PUBLICATION headrace DROP TABLE {0};", "ALTER PUBLICATION headrace ADD TABLE ONLY {0}"
EDITS = {
    "a": f"{TAKE_OUT} {LOST} {PUT_BACK}",
    "b": f"{TAKE_OUT} {PUT_BACK} WHERE (id > 100); {LOST} {TAKE_OUT} {PUT_BACK}",
    "c": f"{TAKE_OUT} {PUT_BACK} (id); {LOST} {TAKE_OUT} {PUT_BACK}",
}
"""Edits of one table, each reverted; `d` is not edited."""

ALL = (
    "FOR TABLE ONLY a, ONLY b, ONLY c, ONLY d, ONLY headrace.schema_ownership WITH (publish_via_partition_root = true)"
)
OF_ALL = {
    "was altered": "ALTER PUBLICATION headrace SET (publish = 'insert'); DELETE FROM a; "
    "ALTER PUBLICATION headrace SET (publish = 'insert, update, delete, truncate')",
    "was dropped and recreated": f"DROP PUBLICATION headrace; {LOST.format('a')} CREATE PUBLICATION headrace {ALL}",
    "no longer exists": f"DROP PUBLICATION headrace; {LOST.format('b')}",
}
"""Edits of every table, by their problem."""


@pytest.fixture
def source(new_source: NewSource) -> Source:
    return new_source(TABLES, *(f"public.{name}" for name in NAMES), timing=OFTEN)


def edit(source: Source, statements: str) -> None:
    for statement in statements.split(";"):
        source.connection.execute(statement.encode())


def problems(source: Source) -> list[str]:
    """Return the problems that `headrace check` reports."""
    positions = Positions(source.settings.prefix, source.settings.kafka)
    return [finding.problem for finding in hindrances(source.connection, source.settings, "main", positions)]


def stopped(source: Source) -> set[str]:
    return {name.removeprefix("public.") for name, each in source.state().snapshots.items() if each.stopped}


def edit_all(source: Source) -> None:
    for name, statements in EDITS.items():
        edit(source, statements.format(name))


def require_stopped(source: Source, producer: Running) -> None:
    """Wait until the edited tables are stopped, and fail unless the other continues."""

    def all_stopped() -> bool:
        producer.check()
        return stopped(source) >= EDITS.keys()

    until(all_stopped, "the tables to be stopped")
    source.connection.execute("INSERT INTO d VALUES (3, 'after')")
    source.passes(producer.check)
    assert stopped(source) == EDITS.keys()


def restart_from_scratch(source: Source, producer: Running) -> None:
    """Apply the remedy, and fail unless it works."""
    for name in EDITS:
        ask(source.settings, "main", SnapshotRequest(table=f"public.{name}", from_scratch=True))
    until(lambda: not stopped(source), "the re-snapshots")
    producer.caught_up()


def test_tables_edited_while_producer_runs_are_stopped(source: Source) -> None:
    with running(source) as producer:
        producer.caught_up()
        edit_all(source)
        require_stopped(source, producer)
        assert sorted(problem.partition(" (")[0] for problem in problems(source)) == [
            f"table public.{name} is stopped" for name in sorted(EDITS)
        ]
        restart_from_scratch(source, producer)
    for name in NAMES:
        source.require_equal(f"public.{name}")


def test_tables_edited_while_producer_was_stopped_are_stopped_at_start(source: Source) -> None:
    copy_all(source)
    edit_all(source)
    told = problems(source)
    assert sorted(problem.partition(" (")[0] for problem in told) == [
        f"table public.{name} is stopped" for name in sorted(EDITS)
    ]
    assert all("the publication was altered for it" in problem for problem in told)
    with running(source) as producer:
        require_stopped(source, producer)
        restart_from_scratch(source, producer)
    assert problems(source) == []
    for name in NAMES:
        source.require_equal(f"public.{name}")


def test_each_table_can_be_resnapshotted_after_all_were_edited(new_source: NewSource) -> None:
    source = new_source(TABLES, "public.a")
    copy_all(source)
    edit(source, EDITS["a"].format("a"))
    with pytest.raises(TableStopped, match=r"every table of main is stopped"):
        copy_all(source)
    # The server may notice a dead producer late, and keep its slot active.
    stream = source.recorded().stream
    assert stream is not None
    dsn = source.settings.database("main").dsn.get_secret_value()
    until(lambda: source.slot_state().active_pid is None, "the slot to be free")
    until(lambda: not sessions_of(source.connection, source.slot), "the refused producer's session to be over")
    reader = ReplicationStream(dsn, source.slot, "headrace", stream.confirmed_lsn)
    try:
        answer = ask(source.settings, "main", SnapshotRequest(table="public.a", from_scratch=True))
        assert answer == "public.a is re-snapshotted when the producer of main starts"
    finally:
        reader.close()
    copy_all(source)
    source.require_equal("public.a")


@pytest.mark.parametrize("key", ["float8", "int"])
def test_an_edit_while_a_topic_was_empty_loses_nothing(new_source: NewSource, key: str) -> None:
    """The stream has the row's insert but not its delete; keys of one type are not comparable here."""
    source = new_source(f"{TABLES} CREATE TABLE f (id {key} PRIMARY KEY, v text);", "public.f", "public.a")
    copy_all(source)
    statements = f"INSERT INTO f VALUES (1, 'x'), (2, 'y'); {TAKE_OUT} DELETE FROM f WHERE id = 1; {PUT_BACK}"
    edit(source, statements.format("f"))
    copy_all(source)
    source.require_equal("public.f")
    source.connection.execute("INSERT INTO f VALUES (1, 'z'); DELETE FROM f WHERE id = 2")
    copy_all(source)
    assert len(source.require_equal("public.f")) == 4, "r of 2, c of 1, d of 2 and its tombstone"


def test_edit_of_whole_publication_while_stopped_is_refused(source: Source) -> None:
    copy_all(source)
    for what in ("was altered", "no longer exists"):
        edit(source, OF_ALL[what])
        with pytest.raises(SilentGap, match=f"publication headrace of main {what}") as refused:
            copy_all(source)
        assert problems(source) == [refused.value.problem]
        with pytest.raises(SilentGap, match=what):
            ask(source.settings, "main", SnapshotRequest(table="public.a", from_scratch=True))
        assert "headrace produce main --start-over" in refused.value.remedy
        start_over(source.settings, "main")
        copy_all(source)
        assert problems(source) == []
        for name in NAMES:
            source.require_equal(f"public.{name}")


def test_edit_of_whole_publication_ends_running_producer(source: Source) -> None:
    """Also if no session receives the server's warning about the missing publication."""
    database = source.connection.info.dbname
    source.connection.execute(f"ALTER DATABASE {database} SET client_min_messages = error".encode())
    producer = Running(source)
    producer.caught_up()
    edit(source, OF_ALL["was dropped and recreated"])
    error = producer.ended()
    assert isinstance(error, SilentGap), error
    (problem,) = problems(source)
    assert "publication headrace of main was dropped" in problem
    start_over(source.settings, "main")
    copy_all(source)
    for name in NAMES:
        source.require_equal(f"public.{name}")


def test_own_tables_removed_from_publication_are_put_back(source: Source) -> None:
    """Without heartbeats the stream would not advance, and requests would never arrive."""
    with running(source) as producer:
        producer.caught_up()
        edit(source, TAKE_OUT.format("headrace.heartbeat"))
        edit(source, f"{TAKE_OUT} {PUT_BACK} WHERE (false)".format("headrace.snapshot_requests"))
        published = "SELECT count(*) FROM pg_publication_rel WHERE prqual IS NULL"
        whole = len(NAMES) + 3
        until(lambda: source.connection.execute(published).fetchone() == (whole,), "them to be back")
        producer.caught_up()
        ask(source.settings, "main", SnapshotRequest(table="public.d"))
        until(lambda: len(source.records("public.d")) == 2, "the re-snapshot")
        producer.caught_up()
    assert stopped(source) == set()
    assert problems(source) == []


def die(*_: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def dying(source: Source) -> Iterator[None]:
    """After a producer that published its tables but ended before that was recorded."""
    with pytest.MonkeyPatch.context() as killed:
        killed.setattr(opening, "claim", die)
        assert isinstance(Running(source, Session).ended(), KeyboardInterrupt)
    yield


def test_own_unrecorded_publication_change_is_no_edit(source: Source) -> None:
    both = source.settings
    section = both.database("main").model_copy(update={"tables": ("public.a", "public.b")})
    source.settings = both.model_copy(update={"databases": {"main": section}})
    with dying(source):
        copy_all(source)
    source.settings = both
    with dying(source):
        source.connection.execute("INSERT INTO a VALUES (5, 'y'); INSERT INTO c VALUES (5, 'y')")
        copy_all(source)
    # And with another session's edit in between.
    with dying(source):
        edit(source, EDITS["a"].format("a"))
        assert [problem.partition(" (")[0] for problem in problems(source)] == ["table public.a is stopped"]
    assert stopped(source) == set()
    for name in NAMES:
        source.require_equal(f"public.{name}") if name != "a" else None


def test_slot_older_than_publication_is_read_from_first_start(source: Source) -> None:
    source.connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (source.slot,))
    source.connection.execute("INSERT INTO a VALUES (2, 'y'); UPDATE a SET v = 'z' WHERE id = 1")
    with running(source) as producer:
        producer.caught_up()
        source.connection.execute("DELETE FROM a WHERE id = 2")
        producer.caught_up()
    source.require_equal("public.a")


def test_two_phase_slot_is_refused_before_reading(source: Source) -> None:
    source.connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput', false, true)", (source.slot,))
    (problem,) = problems(source)
    assert problem == f"slot {source.slot} was created with two_phase and sends transactions before they commit"
    with pytest.raises(Exception, match="was created with two_phase"):
        copy_all(source)
    start_over(source.settings, "main")
    prepared = source.connection.execute("SHOW max_prepared_transactions").fetchone() != ("0",)
    with running(source) as producer:
        producer.caught_up()
        if prepared:
            source.connection.execute("BEGIN; INSERT INTO a VALUES (7, 'p'); PREPARE TRANSACTION 'one'")
            source.connection.execute("COMMIT PREPARED 'one'")
        producer.caught_up()
    source.require_equal("public.a")


def test_edit_before_pending_resnapshot_still_resnapshots_table(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not end the source with a reason that names no table."""
    copy_all(source)
    ask(source.settings, "main", SnapshotRequest(table="public.a", from_scratch=True))
    opened = acquire.open_feeds
    edits = ["ALTER PUBLICATION headrace DROP TABLE a"]

    def open_feeds(settings, name, tables, *arguments, **more):  # type: ignore[no-untyped-def]
        # The first session takes the request, the second re-snapshots the table.
        snapshots = arguments[1]
        if edits and snapshots["public.a"].from_scratch:
            edit(source, edits.pop())
        return opened(settings, name, tables, *arguments, **more)

    monkeypatch.setattr(opening, "open_feeds", open_feeds)
    with running(source) as producer:
        until(lambda: not edits or producer.error is not None, "the session that re-snapshots it")
        until(
            lambda: not source.state().snapshots["public.a"].from_scratch or producer.error is not None, "the next one"
        )
        producer.check()
    source.connection.execute("INSERT INTO a VALUES (3, 'later')")
    copy_all(source)
    source.require_equal("public.a")


def test_table_whose_resnapshot_fails_does_not_block_others(
    new_source: NewSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = new_source(TABLES, "public.a", "public.b")
    copy_all(source)
    start_over(source.settings, "main")
    taken_out = "it was removed from the publication"

    def obstacle(table: CapturedTable, *arguments: Any) -> str | None:
        return taken_out if table.name == "public.a" else schema_changes.obstacle(table, *arguments)

    with monkeypatch.context() as taken, running(source) as producer:
        taken.setattr("producers.publish.table_encoders.obstacle", obstacle)
        source.connection.execute("INSERT INTO b VALUES (2, 'after')")
        producer.caught_up()
    kept = source.recorded().snapshots["public.a"]
    assert (kept.stopped, kept.from_scratch) == (taken_out, True)
    copy_all(source)
    for name in ("a", "b"):
        source.require_equal(f"public.{name}")
    assert not stopped(source)
