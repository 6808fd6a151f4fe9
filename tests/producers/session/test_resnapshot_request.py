"""Re-snapshots on demand, on real servers: of a range under load, and from scratch after changes were lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from consumers.testing.waiting import until
from infra.settings.model import Settings
from infra.state.history import read_history
from infra.state.positions import Positions, SnapshotState, SourceState
from infra.state.snapshot_requests import SnapshotRequest
from producers.session import opening, resnapshot_request
from producers.session.resnapshot_request import FromScratchOnly, NotReadYet, ask
from producers.source.gaps import SilentGap
from schemas.errors import BrokerUnavailable, UsageError
from tests.producers.folding import ops, states
from tests.producers.processes import SCHEMA, Workload
from tests.producers.sources import Source, capturing, copy_all, running

pytestmark = pytest.mark.stack

NewSource = Callable[..., Source]
ROWS = "INSERT INTO t SELECT i, 0, 'v' FROM generate_series(1, 60) i"


def request(source: Source, first: int | None = None, last: int | None = None, *, from_scratch: bool = False) -> str:
    ends = [None if key is None else (str(key),) for key in (first, last)]
    return ask(
        source.settings,
        "main",
        SnapshotRequest(table="public.t", first=ends[0], last=ends[1], from_scratch=from_scratch),
    )


def over(source: Source, table: str = "public.t") -> bool:
    return not source.state().snapshots[table].under_way


def test_running_producer_re_snapshots_a_range(new_source: NewSource) -> None:
    source = new_source(f"{SCHEMA}; {ROWS}", "public.t", snapshot={"chunk_rows": 7})
    with running(source) as producer:
        producer.caught_up()
        assert request(source, 11, 30).startswith("requested at ")
        producer.caught_up()
        until(lambda: over(source), "the range")
    records = source.require_equal("public.t")
    assert states(records) == {"r": 80}
    (recorded,) = read_history(source.connection)
    assert (recorded.action, recorded.subject, recorded.details["first"]) == ("snapshot", "public.t", ["11"])
    assert [ops(records, id=key) for key in (10, 11, 30, 31)] == [["r"], ["r", "r"], ["r", "r"], ["r"]]


@pytest.mark.long
@pytest.mark.parametrize("key", ["id int PRIMARY KEY", "id numeric PRIMARY KEY"])
def test_table_is_re_snapshotted_under_random_work(new_source: NewSource, key: str) -> None:
    source = new_source(
        f"{SCHEMA.replace('id int PRIMARY KEY', key)}; INSERT INTO t SELECT i, 0, 'v' FROM generate_series(1, 300) i",
        "public.t",
        snapshot={"chunk_rows": 7},
    )
    dsn = source.settings.database("main").dsn.get_secret_value()
    with Workload(dsn, 5, keys=300, truncates=False), running(source) as producer:
        producer.caught_up()
        request(source)
        producer.caught_up()
        until(lambda: over(source), "the table")
    copy_all(source)
    assert states(source.require_equal("public.t"))["r"] > 400


def test_stopped_producer_re_snapshots_at_its_next_start(new_source: NewSource) -> None:
    source = new_source(f"{SCHEMA}; {ROWS}", "public.t")
    copy_all(source)
    request(source, 60)
    with running(source) as producer:
        producer.caught_up()
        until(lambda: over(source), "the range")
    assert states(source.require_equal("public.t")) == {"r": 61}


def test_table_is_re_snapshotted_from_scratch(new_source: NewSource) -> None:
    source = new_source(f"{SCHEMA}; {ROWS}", "public.t", snapshot={"chunk_rows": 7})
    with running(source) as producer:
        producer.caught_up()
        request(source, from_scratch=True)
        until(lambda: "t" in states(source.records("public.t")), "the truncate")
        producer.caught_up()
        source.connection.execute("DELETE FROM t WHERE id = 1")
        producer.caught_up()
    assert states(source.require_equal("public.t")) == {"r": 120, "t": 2, "d": 1, "tombstone": 1}


def test_table_removed_and_published_again_is_re_snapshotted_from_scratch(new_source: NewSource) -> None:
    source = new_source(f"{SCHEMA}; {ROWS}; CREATE TABLE u (id int PRIMARY KEY)", "public.t", "public.u")
    copy_all(source)
    both = source.settings
    source.settings = capturing(both, "public.u")
    copy_all(source)
    source.connection.execute("DELETE FROM t WHERE id < 10")
    source.settings = both
    with pytest.raises(SilentGap, match=r"headrace snapshot public\.t --from-scratch"):
        copy_all(source)
    with pytest.raises(NotReadYet, match=r"public\.t has never been read"):
        request(source)
    assert request(source, from_scratch=True) == "public.t is re-snapshotted when the producer of main starts"
    copy_all(source)
    assert states(source.require_equal("public.t")) == {"r": 60 + 51, "t": 2}


def test_stopped_table_is_re_snapshotted_from_scratch(new_source: NewSource) -> None:
    source = new_source(f"{SCHEMA}; {ROWS}; CREATE TABLE u (id int PRIMARY KEY)", "public.t", "public.u")
    with running(source) as producer:
        producer.caught_up()
        source.connection.execute("ALTER TABLE t ALTER COLUMN n TYPE text; UPDATE t SET n = 'x'")
        until(lambda: bool(source.state().snapshots["public.t"].stopped), "the stop")
        with pytest.raises(FromScratchOnly, match=r"public\.t is stopped"):
            request(source)
        request(source, from_scratch=True)
        until(lambda: "t" in states(source.records("public.t")), "the truncate")
        producer.caught_up()
    source.require_equal("public.t")


@pytest.mark.parametrize("tables", [["public.t"], ["public.t", "public.u"]])
def test_request_is_kept_if_the_next_session_first_reads_the_state_before_it(
    new_source: NewSource, monkeypatch: pytest.MonkeyPatch, tables: list[str]
) -> None:
    """Kafka shows a commit a moment after it returned, and a session begins at once."""
    source = new_source(f"{SCHEMA}; {ROWS}; CREATE TABLE u (id int PRIMARY KEY)", *tables)
    with running(source) as producer:
        producer.caught_up()
        source.connection.execute("ALTER TABLE t ALTER COLUMN n TYPE text; UPDATE t SET n = 'x'")
        until(lambda: bool(source.state().snapshots["public.t"].stopped), "the stop")
    before = Positions(source.settings.prefix, source.settings.kafka).sources()
    request(source, from_scratch=True)
    behind = [before]

    class Behind(Positions):
        def sources(self) -> dict[str, SourceState]:
            now = super().sources()
            requested = now["main"].snapshots["public.t"].from_scratch
            return behind.pop() if behind and requested else now

    monkeypatch.setattr(opening, "Positions", Behind)
    with running(source) as producer:
        until(lambda: "t" in states(source.records("public.t")), "the truncate")
        producer.caught_up()
    assert not behind
    source.require_equal("public.t")


def test_table_that_cannot_be_captured_waits_without_delaying_others(new_source: NewSource) -> None:
    source = new_source(f"{SCHEMA}; {ROWS}; CREATE TABLE u (id int PRIMARY KEY)", "public.t", "public.u")
    copy_all(source)
    request(source, from_scratch=True)
    source.connection.execute("ALTER TABLE t DROP CONSTRAINT t_pkey; INSERT INTO u VALUES (1)")
    with running(source) as producer:
        until(lambda: len(source.records("public.u")) == 1, "the other's row")
        producer.caught_up()
    assert source.state().snapshots["public.t"].stopped
    source.connection.execute("ALTER TABLE t ADD PRIMARY KEY (id); INSERT INTO t VALUES (1000, 0, 'late')")
    with running(source) as producer:
        until(lambda: "t" in states(source.records("public.t")), "the truncate")
        producer.caught_up()
    source.require_equal("public.t")


@pytest.mark.parametrize("accepted", [False, True])
def test_request_from_scratch_that_kafka_did_not_confirm_is_not_recorded(
    new_source: NewSource, monkeypatch: pytest.MonkeyPatch, accepted: bool
) -> None:
    source = new_source(f"{SCHEMA}; {ROWS}", "public.t")
    with running(source) as producer:
        producer.caught_up()
        source.connection.execute("ALTER TABLE t ALTER COLUMN n TYPE text; UPDATE t SET n = 'x'")
        until(lambda: bool(source.state().snapshots["public.t"].stopped), "the stop")
    record = resnapshot_request.record_for_next_start

    def unconfirmed(settings: Settings, state: SnapshotState) -> None:
        if accepted:
            record(settings, state)
        raise BrokerUnavailable("Kafka says nothing")

    with monkeypatch.context() as patched:
        patched.setattr(resnapshot_request, "record_for_next_start", unconfirmed)
        with pytest.raises(BrokerUnavailable):
            request(source, from_scratch=True)
    assert read_history(source.connection) == []
    request(source, from_scratch=True)
    assert [entry.details["from_scratch"] for entry in read_history(source.connection)] == [True]
    copy_all(source)
    source.require_equal("public.t")


def test_key_that_does_not_match_is_refused(new_source: NewSource) -> None:
    source = new_source(f"{SCHEMA}; {ROWS}", "public.t")
    with pytest.raises(NotReadYet, match="source main has never been read"):
        request(source)
    copy_all(source)
    with pytest.raises(UsageError, match=r"a key with 2 value\(s\) was given, but the key of public\.t is \(id\)"):
        ask(source.settings, "main", SnapshotRequest(table="public.t", first=("1", "2")))
    with pytest.raises(UsageError, match=r"does not match its columns' types, .*give --from and --to once"):
        ask(source.settings, "main", SnapshotRequest(table="public.t", last=("x",)))
