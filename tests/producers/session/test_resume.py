"""A producer resumes, or refuses to start: it never leaves a silent gap."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from infra.kafka import clients
from infra.kafka.topics import delete_topics, end_offsets, ensure_topic
from infra.state.positions import SourceState, StreamState
from producers.session import resume
from producers.session.resume import ServerWal
from producers.source import slots
from producers.source.gaps import SilentGap
from producers.source.schema_changes import TableStopped
from schemas.errors import UsageError
from schemas.positions import Lsn
from tests.producers.folding import states
from tests.producers.sources import Running, Source, capturing, copy_all, running, topic_of

NewSource = Callable[..., Source]

SYSTEM = "7000"
LOG = ServerWal(SYSTEM, 1, Lsn(200), {})
RECORDED = StreamState(
    source="main", instance="i", slot="s", system_identifier=SYSTEM, commit_lsn=Lsn(90), ordinal=0,
    confirmed_lsn=Lsn(100), ts_ms=0,
)  # fmt: skip


def slot(confirmed: int | None, status: str = "reserved", reason: str | None = None) -> slots.SlotState:
    flushed = None if confirmed is None else Lsn(confirmed)
    return slots.SlotState("s", "pgoutput", "d", None, flushed, Lsn(1), status, None, reason, False, False)


@pytest.mark.parametrize(
    ("stream", "found"),
    [(None, None), (None, slot(5)), (RECORDED, slot(100)), (RECORDED, slot(50)), (RECORDED, slot(None))],
)
def test_consistent_slot_and_position_are_accepted(stream: StreamState | None, found: slots.SlotState | None) -> None:
    resume.refuse_gaps(SourceState(stream), found, "s", LOG)


AGAIN = "re-snapshot all tables with `headrace produce main --start-over`"
ON_ONE = RECORDED.model_copy(update={"timeline": 1})
GAPS: dict[str, tuple[StreamState, slots.SlotState | None, ServerWal, str, str]] = {
    "lost": (RECORDED, slot(100, "lost", "wal_removed"), LOG, r"was invalidated \(wal_removed\)", "raise max_slot_wal"),
    "idle": (RECORDED, slot(100, "lost", "idle_timeout"), LOG, r"was invalidated \(idle_timeout\)", "raise idle_repl"),
    "lost, on an older server": (RECORDED, slot(100, "lost"), LOG, r"was invalidated \(lost\)", "raise max_slot_wal"),
    "missing": (RECORDED, None, LOG, "topics of main are at 0/64, but slot s no longer exists", AGAIN),
    "under creation": (
        RECORDED, replace(slot(None), made=False, active_pid=7), LOG,
        "are at 0/64, but slot s is only now being created by process 7", AGAIN,
    ),
    "ahead": (RECORDED, slot(101), LOG, "slot s is at 0/65, ahead of the topics at 0/64: another reader", AGAIN),
    "another cluster": (
        RECORDED, slot(100), ServerWal("8000", 1, Lsn(200), {}),
        "come from database system 7000, but this server is 8000", r"correct databases\.main\.dsn, or re-snapshot",
    ),
    "restored": (
        RECORDED, slot(50), ServerWal(SYSTEM, 1, Lsn(99), {}),
        "are at 0/64, after the end of the server's WAL at 0/63: the server was reset", AGAIN,
    ),
    "promoted without the last changes": (
        ON_ONE, slot(50), ServerWal(SYSTEM, 2, Lsn(200), {1: Lsn(99)}),
        "are at 0/64 on timeline 1, which this server left at 0/63", AGAIN,
    ),
    "in the middle of a transaction": (
        ON_ONE.model_copy(update={"commit_lsn": Lsn(120)}), slot(50), ServerWal(SYSTEM, 2, Lsn(200), {1: Lsn(120)}),
        "which this server left at 0/78", AGAIN,
    ),
    "left behind": (
        RECORDED.model_copy(update={"timeline": 2}), slot(50), LOG,
        "are on timeline 2, but this server is on timeline 1 and was never on it",
        r"correct databases\.main\.dsn",
    ),
    "not synchronized": (
        ON_ONE, None, ServerWal(SYSTEM, 2, Lsn(200), {1: Lsn(100)}),
        "slot s had not been synchronized to this server when it was promoted", "sync_replication_slots = on",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", GAPS)
def test_gaps_are_refused(kind: str) -> None:
    stream, found, server, words, remedy = GAPS[kind]
    with pytest.raises(SilentGap, match=words) as caught:
        resume.refuse_gaps(SourceState(stream), found, "s", server)
    assert caught.value.exit_code == 3
    assert re.search(remedy, caught.value.remedy)
    assert "headrace produce main --start-over" in caught.value.remedy


def test_failover_to_an_up_to_date_standby_resumes() -> None:
    later = ServerWal(SYSTEM, 3, Lsn(200), {1: Lsn(100), 2: Lsn(150)})
    resume.refuse_gaps(SourceState(ON_ONE), slot(50), "s", later)


def test_remedy_for_a_lost_unread_slot_is_to_drop_it() -> None:
    with pytest.raises(SilentGap, match=r"SELECT pg_drop_replication_slot\('s'\)"):
        resume.refuse_gaps(SourceState(), slot(100, "lost", "wal_removed"), "s", LOG)


# On real servers.

TWO = (
    "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 1), (2, 2);"
    "CREATE TABLE u (id int PRIMARY KEY); INSERT INTO u VALUES (1)"
)


def refused(source: Source, kind: type[BaseException], words: str) -> None:
    """Fail unless the producer refuses to start."""
    with pytest.raises(kind, match=words):
        raise Running(source).ended() or AssertionError("it started")


@pytest.mark.stack
def test_dropped_slot_is_refused(new_source: NewSource) -> None:
    source = new_source(TWO, "public.t")
    copy_all(source)
    source.drop_slot()
    refused(source, SilentGap, f"slot {source.slot} no longer exists")
    slots.create(source.connection, source.slot, failover=False)
    refused(source, SilentGap, f"slot {source.slot} is at .*, ahead of the topics at")


@pytest.mark.stack
def test_table_removed_from_the_publication_and_added_again_is_refused(new_source: NewSource) -> None:
    source = new_source(TWO, "public.t", "public.u")
    copy_all(source)
    source.settings = capturing(source.settings, "public.t")
    copy_all(source)
    source.settings = capturing(source.settings, "public.t", "public.u")
    topic = topic_of(source.settings, "public.u")
    refused(source, SilentGap, f"topic {topic} has records, but no snapshot .* public.u is recorded; re-snapshot it")
    delete_topics(source.settings.kafka, [topic])
    source.connection.execute("INSERT INTO u VALUES (2)")
    copy_all(source)
    assert states(source.require_equal("public.u")) == {"r": 2}
    assert states(source.require_equal("public.t")) == {"r": 2}


@pytest.mark.stack
def test_recreated_table_is_stopped(new_source: NewSource) -> None:
    """A dropped table leaves the publication: changes before the next start are not in the stream."""
    source = new_source(TWO, "public.t")
    copy_all(source)
    source.connection.execute("DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (3, 3)")
    refused(source, TableStopped, r"public\.t: it was removed from the publication\)")
    delete_topics(source.settings.kafka, [topic_of(source.settings, "public.t")])
    copy_all(source)
    assert states(source.require_equal("public.t")) == {"r": 1}


@pytest.mark.stack
def test_deleted_topic_is_refilled(new_source: NewSource) -> None:
    source = new_source(TWO, "public.t", "public.u")
    copy_all(source)
    delete_topics(source.settings.kafka, [topic_of(source.settings, "public.t")])
    source.connection.execute("UPDATE t SET n = 7 WHERE id = 1; DELETE FROM t WHERE id = 2")
    with running(source) as producer:
        producer.caught_up()
        source.connection.execute("INSERT INTO t VALUES (5, 5)")
        producer.caught_up()
    assert states(source.require_equal("public.t")) == {"r": 1, "c": 1}
    assert states(source.require_equal("public.u")) == {"r": 1}


@pytest.mark.stack
def test_changed_gitlab_schema_uses_another_topic(new_source: NewSource) -> None:
    source = new_source(TWO, "public.t", gitlab_schemas=["gitlab_main", "gitlab_ci"])
    copy_all(source)
    database = source.settings.database("main")
    moved = database.model_copy(update={"table_schemas": {"public.t": "gitlab_ci"}})
    source.settings = source.settings.model_copy(update={"databases": {"main": moved}})
    copy_all(source)
    assert sum(end_offsets(source.settings.kafka, f"{source.settings.prefix}.gitlab_ci.t").values()) > 2


@pytest.mark.stack
def test_changed_key_is_refused(new_source: NewSource) -> None:
    source = new_source(
        "CREATE TABLE t (id int PRIMARY KEY, name text NOT NULL UNIQUE); ALTER TABLE t REPLICA IDENTITY FULL;"
        "INSERT INTO t VALUES (1, 'a')",
        "public.t",
    )
    copy_all(source)
    database = source.settings.database("main").model_copy(update={"keys": {"public.t": ("name",)}})
    source.settings = source.settings.model_copy(update={"databases": {"main": database}})
    refused(source, TableStopped, "key: id → name")


@pytest.mark.stack
def test_incompatible_change_is_fixed_by_a_new_topic(new_source: NewSource) -> None:
    source = new_source(TWO, "public.t")
    copy_all(source)
    source.connection.execute("ALTER TABLE t ALTER n TYPE text")
    refused(source, TableStopped, "column n changed its type")
    delete_topics(source.settings.kafka, [topic_of(source.settings, "public.t")])
    copy_all(source)
    source.require_equal("public.t")


@pytest.mark.stack
def test_table_that_lost_its_key_stops_without_affecting_others(new_source: NewSource) -> None:
    source = new_source(f"{TWO}; DELETE FROM u", "public.t", "public.u")
    copy_all(source)
    source.connection.execute("ALTER TABLE u DROP CONSTRAINT u_pkey; INSERT INTO t VALUES (3, 3)")
    for _ in range(2):
        with running(source) as producer:
            producer.caught_up()
            stopped = source.state().snapshots["public.u"].stopped
        assert stopped == "table public.u has neither a primary key nor a replica identity index"
    source.connection.execute("INSERT INTO u VALUES (7); ALTER TABLE u ADD PRIMARY KEY (id); INSERT INTO u VALUES (8)")
    copy_all(source)
    source.require_equal("public.t")
    assert states(source.require_equal("public.u")) == {"r": 2}


@pytest.mark.stack
def test_topic_with_unrecorded_rows_is_refused(new_source: NewSource) -> None:
    source = new_source(TWO, "public.t", "public.u")
    source.settings = capturing(source.settings, "public.u")
    copy_all(source)
    topic = topic_of(source.settings, "public.t")
    ensure_topic(source.settings.kafka, topic)
    client = clients.producer(source.settings.kafka)
    client.produce(topic, b"?", b"?")
    client.flush()
    source.settings = capturing(source.settings, "public.t", "public.u")
    refused(source, SilentGap, f"topic {topic} has records, but no snapshot of table public.t is recorded")


@pytest.mark.stack
def test_refused_start_does_not_affect_the_running_producer(new_source: NewSource) -> None:
    source = new_source(TWO, "public.t")
    with running(source) as producer:
        producer.caught_up()
        stream = source.state().stream
        assert stream is not None
        wrong = Source(source.settings, source.connection)
        database = source.settings.database("main").model_copy(update={"slot": "x_" + source.settings.prefix})
        wrong.settings = source.settings.model_copy(update={"databases": {"main": database}})
        refused(wrong, SilentGap, "no longer exists")
        source.connection.execute("INSERT INTO t VALUES (3, 3)")
        producer.caught_up()
        after = source.state().stream
        assert after is not None
        assert after.instance == stream.instance
    source.require_equal("public.t")


@pytest.mark.stack
def test_invalid_slot_name_is_refused(new_source: NewSource) -> None:
    source = new_source(TWO, "public.t")
    source.settings = source.settings.model_copy(update={"prefix": "p" * 60})
    refused(source, UsageError, "is not a valid slot name")
