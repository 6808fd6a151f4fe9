"""Traces of a consumer's transactions: their spans, one trace for a source transaction, nothing where they are off."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psycopg
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from consumers.contract.decisions import Change
from consumers.ledger.progress import Advance
from consumers.planning.effect_traces import EffectTraces, TracesNotInstalled, derived_trace_id, effect_traces
from consumers.planning.planner import SubBatch
from consumers.testing.waiting import until
from infra.settings.extras.traces_settings import TracesSettings
from infra.settings.model import Settings
from schemas.codec.encoder import Encoder
from schemas.events import Op, Origin
from schemas.positions import Lsn, Offset
from tests.consumers.container_repositories import TOO_MANY_TAGS, Feed, fill
from tests.consumers.model.topic import PLACES, RELATION, Record

ENCODER = Encoder(RELATION, "gitlab_main", ("id",), origin=Origin("main", "main"), value_schema_id=3, key_schema_id=4)
ALL = TracesSettings(sample=1.0)


@dataclass(frozen=True)
class Published(Record):
    """A record with Kafka's timestamp, or none."""

    kafka_ms: int = 0

    def timestamp(self) -> tuple[int, int]:
        return (1, self.kafka_ms) if self.kafka_ms else (0, -1)


def record(committed_ms: int, *, lsn: int = 8, kafka_ms: int = 0, snapshot: bool = False) -> Published:
    prefix = ENCODER.event_prefix(
        Op.READ if snapshot else Op.CREATE, lsn=Lsn(lsn), xid=None if snapshot else 7, ts_ms=committed_ms,
        snapshot=snapshot,
    )  # fmt: skip
    value = ENCODER.change(prefix, 0, committed_ms, [b"1", b"2", b"x"])[1]
    return Published(PLACES[0], 1, value, kafka_ms=kafka_ms)


def sub_batch(records: list[Published]) -> SubBatch:
    made = SubBatch(0, len(records))
    made.origins.extend(records)
    made.changes.extend(Change("a change") for _ in records)
    made.advances.append(Advance(PLACES[0], Offset(1), Offset(9), changes=len(records), skipped={"x": 5}))
    return made


class Traced:
    """Traces that are kept in memory."""

    def __init__(self, settings: TracesSettings = ALL) -> None:
        self._exporter = InMemorySpanExporter()
        self._traces = EffectTraces(settings, "skip_resets", "main", self._exporter)

    def spans(self, *batches: SubBatch) -> list[ReadableSpan]:
        for each in batches:
            self._traces.applied(each, run=2, applied=1, seconds=0.5)
        self._traces.provider.force_flush()
        return list(self._exporter.get_finished_spans())


def test_span_is_from_the_sources_commit_to_the_effects_in_three_parts() -> None:
    now = int(time.time() * 1000)
    publish, wait, apply, whole = Traced().spans(sub_batch([record(now - 5_000, kafka_ms=now - 3_000), record(now)]))
    assert [each.name for each in (publish, wait, apply, whole)] == ["publish", "wait", "apply", "skip_resets"]
    assert whole.start_time == publish.start_time == (now - 5_000) * 1_000_000
    assert publish.end_time == wait.start_time == (now - 3_000) * 1_000_000
    assert wait.end_time == apply.start_time
    assert apply.start_time is not None
    assert whole.end_time == apply.end_time == apply.start_time + 500_000_000
    assert {each.parent.span_id for each in (publish, wait, apply) if each.parent} == {whole.context.span_id}
    assert whole.parent is None
    assert dict(whole.attributes or {}) == {
        "messaging.system": "kafka",
        "messaging.destination.name": PLACES[0].topic,
        "messaging.destination.partition.id": str(PLACES[0].partition),
        "messaging.kafka.offset": 1,
        "messaging.batch.message_count": 7,
        "db.namespace": "main",
        "headrace.migration": "skip_resets",
        "headrace.run": 2,
        "headrace.source": "main",
        "headrace.lsn": "0/8",
        "headrace.snapshot": False,
        "headrace.changes": 2,
        "headrace.applied": 1,
        "headrace.dead_letters": 0,
    }


def test_snapshot_and_clocks_that_differ_give_no_negative_parts() -> None:
    now = int(time.time() * 1000)
    snapshot = sub_batch([record(now - 10**9, kafka_ms=now - 3_000, snapshot=True)])
    ahead = sub_batch([record(now + 60_000, kafka_ms=now + 60_000)])
    untimed = sub_batch([record(now - 5_000)])
    spans = Traced().spans(snapshot, ahead, untimed)
    assert len(spans) == 12
    assert spans[3].start_time == (now - 3_000) * 1_000_000
    assert all(each.start_time is not None and each.start_time <= (each.end_time or 0) for each in spans)


def test_transaction_without_changes_has_no_span() -> None:
    malformed = Published(PLACES[0], 1, b"not an event")
    assert Traced().spans(SubBatch(0, 0), sub_batch([malformed]), sub_batch([Published(PLACES[0], 1, None)])) == []


def test_consumers_of_one_source_transaction_share_its_trace_and_its_sampling() -> None:
    now = int(time.time() * 1000)
    batches = [sub_batch([record(now, lsn=lsn)]) for lsn in range(8, 208)]
    few = TracesSettings(sample=0.2)
    one, other = ({each.context.trace_id for each in Traced(few).spans(*batches)} for _ in range(2))
    assert one == other
    assert 10 < len(one) < 90
    assert one < {derived_trace_id("main", lsn) for lsn in range(8, 208)}
    assert derived_trace_id("main", 8) != derived_trace_id("ci", 8)


def test_nothing_is_imported_where_they_are_off() -> None:
    assert effect_traces(TracesSettings(), "skip_resets", "main") is None
    code = "import consumers.runtime.assembly, sys; sys.exit(any('opentelemetry' in name for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(
        TracesNotInstalled, match=r"traces\.sample is set, and opentelemetry\.sdk\.resources is not .*pip"
    ):
        effect_traces(ALL, "skip_resets", "main")


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """The address of an OTLP receiver, and what it was sent."""
    got: list[ExportTraceServiceRequest] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") is None:
                got.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", got
        server.shutdown()
        thread.join()


@pytest.mark.stack
def test_consumer_sends_its_traces(
    feed: Feed,
    settings: Settings,
    connection: psycopg.Connection,
    catch_up: Callable[..., object],
    receiver: tuple[str, list[ExportTraceServiceRequest]],
) -> None:
    address, got = receiver
    rows = dict.fromkeys(range(100), TOO_MANY_TAGS)
    fill(connection, rows)
    feed.snapshot(rows)
    traces = TracesSettings(sample=1, endpoint=address)
    catch_up(settings.model_copy(update={"traces": traces}))

    def applied() -> int:
        spans = [span for each in got for of in each.resource_spans for scope in of.scope_spans for span in scope.spans]
        return sum(
            value.value.int_value for span in spans for value in span.attributes if value.key == "headrace.applied"
        )

    until(lambda: applied() == 100, "all changes are in spans that were received")


@pytest.mark.long
def test_receiver_that_is_away_holds_nothing_up(closed_port: int) -> None:
    away = TracesSettings(sample=1.0, endpoint=f"http://127.0.0.1:{closed_port}/v1/traces")
    code = (
        "import time\n"
        "from tests.consumers.planning.test_effect_traces import *\n"
        f"traces = EffectTraces(TracesSettings(sample=1.0, endpoint={away.endpoint!r}), 'm', 'main')\n"
        "for _ in range(10_000): traces.applied(sub_batch([record(int(time.time() * 1000))]), 1, 1, 0.1)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=False, timeout=120)
    assert ended.returncode == 0
