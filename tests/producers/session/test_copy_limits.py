"""The copy phase is throttled by bytes and by health indicators, while the stream continues."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import structlog
from prometheus_client import REGISTRY

from consumers.testing.waiting import until
from infra.health.indicator import Fine, Health, Signal, Stop, Unknown
from infra.settings.model import SnapshotSettings
from infra.state.snapshot_requests import SnapshotRequest, send_request
from producers.session.copy_limits import CopyLimits, snapshot_limits
from schemas.errors import SettingsError
from tests.producers.folding import ops
from tests.producers.sources import Source, running

NewSource = Callable[..., Source]


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Signal]:
    """What indicators answer, which a test changes."""
    found: dict[str, Signal] = {"replica_lag": Fine()}
    monkeypatch.setattr(Health, "signals", lambda *_: dict(found))
    return found


def limited(clock: Clock, **settings: Any) -> CopyLimits:
    chosen = SnapshotSettings(**settings)
    return CopyLimits("main", chosen, snapshot_limits("main", chosen), ["public.t"], now=clock)


def throttled(indicator: str) -> float | None:
    return REGISTRY.get_sample_value("headrace_snapshot_throttled", {"source": "main", "indicator": indicator})


def test_indicator_throttles_until_it_is_over(answers: dict[str, Signal]) -> None:
    clock, no_connection = Clock(), None
    asked: Any = no_connection
    limits = limited(clock, health={"replica_lag": 64})
    assert limits.wait(asked) == 0
    answers["replica_lag"] = Stop("standby b is 300 MB behind")
    assert limits.wait(asked) == 0, "asked again before health_seconds had passed"
    clock.now += 10
    with structlog.testing.capture_logs() as lines:
        assert limits.wait(asked) == 2
        clock.now += 2
        assert limits.wait(asked) == 2
        assert limits.throttled_by == "replica_lag: standby b is 300 MB behind"
        assert throttled("replica_lag") == 1
        answers["replica_lag"] = Fine()
        clock.now += 2
        assert limits.wait(asked) == 0
    assert [line["event"] for line in lines] == ["snapshot throttled", "snapshot no longer throttled"]
    assert limits.throttled_by is None
    assert throttled("replica_lag") == 0


def test_nothing_is_throttled_once_nothing_is_left_to_copy(answers: dict[str, Signal]) -> None:
    asked: Any = None
    limits = limited(Clock(), health={"replica_lag": 64})
    answers["replica_lag"] = Stop("standby b is 300 MB behind")
    assert limits.wait(asked) > 0
    limits.leave()
    assert limits.throttled_by is None
    assert throttled("replica_lag") == 0


def test_indicator_without_an_answer_throttles_nothing_and_is_logged_once(answers: dict[str, Signal]) -> None:
    clock = Clock()
    asked: Any = None
    answers["replica_lag"] = Unknown("no right")
    limits = limited(clock, health={"replica_lag": True})
    with structlog.testing.capture_logs() as lines:
        for _ in range(4):
            assert limits.wait(asked) == 0
            clock.now += 10
    assert [line["event"] for line in lines if line["log_level"] == "warning"] == ["health unknown"]


def test_bytes_of_chunks_are_limited_and_chunks_are_planned_for_a_second() -> None:
    clock = Clock()
    asked: Any = None
    limits = limited(clock, max_mb_per_second=0.5)
    assert limits.chunk_bytes == 250_000
    limits.took(2_000_000)
    assert limits.wait(asked) == pytest.approx(4)
    assert limits.throttled_by is None
    unlimited = limited(clock)
    unlimited.took(1 << 40)
    assert unlimited.wait(asked) == 0
    assert unlimited.chunk_bytes == limited(clock, max_mb_per_second=1000).chunk_bytes


def test_only_named_indicators_are_asked_and_mistakes_are_named() -> None:
    settings = SnapshotSettings(health={"replica_lag": True, "sql": "SELECT false", "archive": False})
    assert snapshot_limits("main", settings) == {"replica_lag": 256, "sql": "SELECT false"}
    assert snapshot_limits("main", SnapshotSettings()) == {}
    with pytest.raises(SettingsError, match=r"unknown key databases\.main\.snapshot\.health\.lag"):
        snapshot_limits("main", SnapshotSettings(health={"lag": 1}))


@pytest.mark.stack
def test_stream_continues_while_an_indicator_throttles_the_copy(new_source: NewSource) -> None:
    source = new_source(
        "CREATE TABLE u (id bigint PRIMARY KEY, n int); CREATE TABLE t (id bigint PRIMARY KEY, n int);"
        " INSERT INTO t SELECT i, i FROM generate_series(1, 50) i; CREATE TABLE busy ()",
        "public.u",
        "public.t",
        snapshot={
            "chunk_rows": 14,
            "health_seconds": 0.05,
            "health": {"sql": "SELECT 'a report is being made' FROM public.busy"},
        },
    )
    connection = source.connection
    reason = "sql: a report is being made"

    def throttled_by() -> str | None:
        stream = source.recorded().stream
        assert stream is not None
        return stream.snapshot_throttled_by

    with running(source) as producer:
        producer.caught_up()
        connection.execute("INSERT INTO busy DEFAULT VALUES")
        send_request(connection, SnapshotRequest(table="public.t"))
        until(lambda: throttled_by() == reason, "the snapshot to be throttled")
        chunks = source.recorded().snapshots["public.t"].chunks_done
        for number in range(3):
            connection.execute("INSERT INTO u VALUES (%s, 1)", (number,))
            connection.execute("UPDATE t SET n = n + 1 WHERE id = 5")
            source.passes()
        assert ops(source.records("public.u"), id=2) == ["c"]
        assert ops(source.records("public.t"), id=5)[-3:] == ["u"] * 3
        assert throttled_by() == reason
        snapshot = source.recorded().snapshots["public.t"]
        assert snapshot.reread is not None
        assert snapshot.chunks_done == chunks < 8
        connection.execute("DELETE FROM busy")
        until(lambda: source.recorded().snapshots["public.t"].reread is None, "the table to be read")
        producer.caught_up()
    assert throttled_by() is None
    assert source.recorded().snapshots["public.t"].chunks_done == 8
    source.require_equal("public.t")
    source.require_equal("public.u")


@pytest.mark.stack
def test_bytes_are_limited_on_a_real_server(new_source: NewSource) -> None:
    """Chunks after the first one or two are planned for a second's bytes: of 111 rows, where 200 are allowed."""
    source = new_source(
        "CREATE TABLE t (id bigint PRIMARY KEY, v text);"
        " INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, 700) i",
        "public.t",
        snapshot={"chunk_rows": 400, "max_mb_per_second": 0.3},
    )
    with running(source) as producer:
        producer.caught_up()
    source.require_equal("public.t")
    assert source.recorded().snapshots["public.t"].chunks_done in {5, 6}
