"""Commits that are decoded before they are visible, on real servers: published when visible, or before."""

from __future__ import annotations

import contextlib
import re
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psycopg
import pytest
from confluent_kafka import Consumer, TopicPartition

from consumers.testing.waiting import PATIENCE, until
from infra.kafka import clients
from infra.schema_registry.topic_registry import open_registry
from schemas.codec.decoder import KeyDecoder
from schemas.wire import split_wire
from tests.producers.folding import ops
from tests.producers.processes import ROOT, producing, write_settings
from tests.producers.sources import Source, running, topic_of
from tests.producers.stream.late_commits import FILLED, answers_go_on, dsn_of, late, visible

NewSource = Callable[..., Source]


@pytest.mark.stack
@pytest.mark.usefixtures("standby_that_never_answers")
def test_event_precedes_visible_row_without_publish_when_visible(new_source: NewSource) -> None:
    """Shows the behaviour of PostgreSQL that the setting handles."""
    source = new_source(FILLED, "public.t")
    with running(source) as producer, late(source) as session:
        producer.caught_up()
        source.connection.execute("INSERT INTO t VALUES (1, 0, 'describes the table')")
        session.commit("INSERT INTO t VALUES (1000, 0, 'late')")
        source.passes(producer.check)
        assert ops(source.records("public.t"), id=1000) == ["c"]
        assert not visible(source, 1000)


LATE_CHANGES = {
    "a column renamed, and dropped": (
        "ALTER TABLE t RENAME n TO m; INSERT INTO t (id, m) VALUES (1000, 1); ALTER TABLE t DROP m"
    ),
    "a column that another takes the place of": (
        "ALTER TABLE t DROP n; ALTER TABLE t ADD n int; INSERT INTO t VALUES (1000, 'late', 5)"
    ),
    "a generated column made a plain one": (
        "ALTER TABLE t ALTER twice DROP EXPRESSION; INSERT INTO t VALUES (1000, 0, 'late', 7)"
    ),
}


@pytest.mark.stack
@pytest.mark.usefixtures("standby_that_never_answers")
@pytest.mark.parametrize("statements", LATE_CHANGES.values(), ids=LATE_CHANGES)
def test_table_is_not_compared_with_catalog_from_before_its_change(new_source: NewSource, statements: str) -> None:
    """Regression: the catalog still had the earlier column, and the table was stopped."""
    twice = ", twice int GENERATED ALWAYS AS (id * 2) STORED" if "twice" in statements else ""
    schema = FILLED.replace("v text)", f"v text{twice})")
    source = new_source(schema, "public.t")
    # Earlier records have a value of a dropped column.
    columns = ("id", "v") if statements.endswith("DROP m") else None
    with running(source) as producer, late(source) as session:
        producer.caught_up()
        session.commit(statements)
        answers_go_on(source)
        producer.check()
        assert ops(source.records("public.t"), id=1000) == []
        session.release()
        producer.caught_up()
        source.connection.execute("UPDATE t SET v = 'after' WHERE id = 1000")
        producer.caught_up()
        # A check may re-snapshot the table, which gives earlier rows the new values.
        right = partial(is_right, source, columns)
        until(lambda: reason(source) is not None or right(), "the topic to be right, or the table to stop")
        assert reason(source) is None


def reason(source: Source) -> str | None:
    return source.state().snapshots["public.t"].stopped


def is_right(source: Source, columns: tuple[str, ...] | None) -> bool:
    with contextlib.suppress(AssertionError):
        return bool(source.require_equal("public.t", columns))
    return False


@pytest.mark.stack
@pytest.mark.usefixtures("standby_that_never_answers")
def test_commit_waiting_for_absent_standby_is_published_when_visible(new_source: NewSource) -> None:
    source = new_source(FILLED, "public.t", publish_when_visible=True, partitions=1)
    with running(source) as producer, late(source) as session:
        producer.caught_up()
        source.connection.execute("INSERT INTO t VALUES (1, 0, 'before')")
        session.commit("INSERT INTO t VALUES (1000, 0, 'late')")
        source.connection.execute("INSERT INTO t VALUES (2, 0, 'after')")
        confirmed = source.slot_state().confirmed_flush
        until(lambda: ops(source.records("public.t"), id=1) == ["c"], "what was committed before")
        answers_go_on(source)
        producer.check()
        assert [record.key for record in source.records("public.t")] == [{"id": 0}, {"id": 1}]
        session.release()
        producer.caught_up()
        moved = source.slot_state().confirmed_flush
        assert confirmed is not None
        assert moved is not None
        assert moved > confirmed
    assert [record.key for record in source.require_equal("public.t")] == [
        {"id": 0},
        {"id": 1},
        {"id": 1000},
        {"id": 2},
    ]


@pytest.mark.stack
@pytest.mark.usefixtures("standby_that_never_answers")
@pytest.mark.parametrize("setting", [True, False])
def test_commits_do_not_wait_forever_for_a_producer_that_counts_as_a_synchronous_standby(
    new_source: NewSource, setting: bool
) -> None:
    source = new_source(FILLED, "public.t", publish_when_visible=setting)
    source.connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
    source.connection.execute("SELECT pg_reload_conf()")
    with running(source) as producer, late(source) as session:
        producer.caught_up()
        session.execute("INSERT INTO t VALUES (1000, 0, 'waits for the producer')")
        producer.caught_up()
    assert ops(source.require_equal("public.t"), id=1000) == ["c"]


@pytest.mark.stack
@pytest.mark.usefixtures("standby_that_never_answers")
def test_a_producer_stops_while_it_waits_and_the_next_publishes_all(new_source: NewSource) -> None:
    source = new_source(FILLED, "public.t", publish_when_visible=True)
    with late(source) as session:
        with running(source) as producer:
            producer.caught_up()
            session.commit("INSERT INTO t VALUES (1000, 0, 'late')")
            answers_go_on(source)
            producer.check()
        assert [record.key for record in source.records("public.t")] == [{"id": 0}]
        session.release()
    with running(source) as producer:
        producer.caught_up()
    assert ops(source.require_equal("public.t"), id=1000) == ["c"]


@pytest.mark.long
@pytest.mark.stack
@pytest.mark.usefixtures("standby_that_never_answers")
def test_a_producer_killed_while_it_waits_loses_nothing(
    new_source: NewSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = new_source(FILLED, "public.t", partitions=1)
    config = write_settings(source.settings, tmp_path / "headrace.toml")
    monkeypatch.setenv("HEADRACE_DATABASES__MAIN__PUBLISH_WHEN_VISIBLE", "true")
    with late(source) as session:
        with producing(config) as process:
            source.caught_up(process.check)
            session.commit("INSERT INTO t VALUES (1000, 0, 'late')")
            source.connection.execute("INSERT INTO t VALUES (2, 0, 'after')")
            answers_go_on(source)
            process.send(signal.SIGKILL)
            process.ended()
        with producing(config) as process:
            until(lambda: source.slot_state().active_pid is not None, "the next one to read")
            answers_go_on(source)
            process.check()
            assert [record.key for record in source.records("public.t")] == [{"id": 0}]
            session.release()
            source.caught_up(process.check)
    assert [record.key for record in source.require_equal("public.t")] == [{"id": 0}, {"id": 1000}, {"id": 2}]


@pytest.mark.stack
@pytest.mark.usefixtures("standby_that_never_answers")
def test_documented_query_returns_whether_row_is_visible(new_source: NewSource) -> None:
    (query,) = re.findall(r"```sql\n(.*?);\n```", (ROOT / "docs" / "reference" / "events.md").read_text(), re.DOTALL)
    source = new_source(FILLED, "public.t")

    def says_visible(xid: int | None) -> bool:
        row = source.connection.execute(query.replace("$1", "%(xid)s"), {"xid": xid}).fetchone()
        assert row is not None
        assert isinstance(row[0], bool)
        return row[0]

    with running(source) as producer, late(source) as session:
        producer.caught_up()
        source.connection.execute("INSERT INTO t VALUES (1, 0, 'plain')")
        session.commit("INSERT INTO t VALUES (1000, 0, 'late')")
        source.passes(producer.check)
        plain, waiting = (xid_of(source, key) for key in (1, 1000))
        assert says_visible(plain)
        assert not says_visible(waiting)
        # An old one, and one of the half of all ids that a guess by nearness puts after the present.
        assert says_visible((plain - 5) % 2**32)
        assert says_visible((waiting + 2**30) % 2**32)
        session.release()
        assert says_visible(waiting)


def xid_of(source: Source, key: int) -> int:
    (record,) = [each for each in source.records("public.t") if each.key == {"id": key}]
    assert record.event is not None
    assert record.event.source.xid is not None
    return record.event.source.xid


class Releasing:
    """Releases every commit that waits, shortly after it began to, until it is left."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Releasing:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            while not self._over.wait(0.03):
                connection.execute(
                    "SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
                    " WHERE wait_event = 'SyncRep' AND datname = current_database()"
                )


@pytest.mark.stack
@pytest.mark.usefixtures("standby_that_never_answers")
def test_reader_finds_row_of_event_immediately(new_source: NewSource) -> None:
    source = new_source(FILLED, "public.t", publish_when_visible=True)
    rows = 200

    def write(first: int) -> None:
        with psycopg.connect(dsn_of(source), autocommit=True) as writer:
            writer.execute("SET synchronous_commit = on")
            for key in range(first, rows + 1, 4):
                done = False
                while not done:
                    # A late release cancels the next statement instead.
                    with contextlib.suppress(psycopg.errors.QueryCanceled):
                        writer.execute("INSERT INTO t VALUES (%s, 0, 'v') ON CONFLICT DO NOTHING", (key,))
                        done = True

    with running(source) as producer, contextlib.closing(reader(source)) as topic:
        producer.caught_up()
        with Releasing(dsn_of(source)), ThreadPoolExecutor(4) as pool:
            writing = [pool.submit(write, first) for first in range(1, 5)]
            found = {key: visible(source, key) for key in events(source, topic, rows + 1)}
            for each in writing:
                each.result(PATIENCE)
    assert found.keys() == set(range(rows + 1))
    assert [key for key, there in found.items() if not there] == []


def reader(source: Source) -> Consumer:
    """Return a consumer at the beginning of the topic of `t`."""
    consumer = clients.consumer(source.settings.kafka, f"reader-{source.settings.prefix}", fetch_wait_max_ms=10)
    topic = topic_of(source.settings, "public.t")
    until(lambda: topic in clients.admin(source.settings.kafka).list_topics(timeout=PATIENCE).topics, "the topic")
    consumer.assign([TopicPartition(topic, partition, 0) for partition in range(2)])
    return consumer


def events(source: Source, topic: Consumer, number: int) -> Iterator[int]:
    """Yield the keys of this many events, each as soon as it arrives."""
    registry = open_registry(source.settings)
    for _ in range(number):
        message = topic.poll(PATIENCE)
        assert message is not None
        assert message.error() is None
        key = message.key() or b""
        decoded = KeyDecoder(registry.schema(split_wire(key)[0])).decode_key(key)["id"]
        assert isinstance(decoded, int)
        yield decoded
