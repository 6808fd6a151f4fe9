"""Traces a consumer's transactions, from the commit in the source to the commit of the effect, with OpenTelemetry.

A transaction that changes rows has a span from the commit of its first event to its own, with the parts `publish`
(until Kafka has the record), `wait` (until its transaction begins) and `apply`. Nothing travels with the records: the
trace's id is derived from the source transaction's position, so that the spans of all consumers that apply the same
transaction are in one trace, and all of them sample the same ones. Off, it costs a comparison with None, and imports
nothing.
"""

from __future__ import annotations

import hashlib
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from consumers.planning.planner import SubBatch, origin_of
from infra.service import log
from infra.settings.extras.traces_settings import TracesSettings
from schemas.codec.header import HeaderReader
from schemas.errors import Malformed, UsageError
from schemas.formats import PROGRAM
from schemas.positions import format_lsn

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

_MODULES: Final = (
    "opentelemetry.trace",
    "opentelemetry.sdk.trace",
    "opentelemetry.sdk.trace.export",
    "opentelemetry.sdk.trace.id_generator",
    "opentelemetry.sdk.trace.sampling",
    "opentelemetry.sdk.resources",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
)


class TracesNotInstalled(UsageError):
    """Install it with `pip install 'headrace[traces]'`, or set traces.sample to 0."""


class EffectTraces:
    """The traces of one consumer; a failing or slow receiver costs spans, and never holds up events."""

    def __init__(
        self, settings: TracesSettings, migration: str, database: str, exporter: SpanExporter | None = None
    ) -> None:
        """Raise TracesNotInstalled without the extra. `exporter` replaces the one to the settings' endpoint."""
        api, sdk, export, ids, sampling, resources, otlp = _imported()
        self._migration = migration
        self._database = database
        self._header = HeaderReader()
        self._api = api
        self._ids = _derived_ids(ids)
        provider = sdk.TracerProvider(
            sampler=sampling.TraceIdRatioBased(settings.sample),
            resource=resources.Resource.create({"service.name": "headrace", "service.version": PROGRAM}),
            id_generator=self._ids,
            # A stop takes a second at most, whatever the receiver does: the last moments' spans may be lost.
            shutdown_on_exit=False,
        )
        provider.add_span_processor(
            export.BatchSpanProcessor(exporter or otlp.OTLPSpanExporter(endpoint=settings.endpoint or None))
        )
        self.provider = provider
        self._tracer = provider.get_tracer("headrace", PROGRAM)
        log.get(migration=migration).info("traces are sent", sample=settings.sample)

    def applied(self, sub_batch: SubBatch, run: int, applied: int, seconds: float) -> None:
        """Trace a transaction that has just committed, `seconds` after it began; one without changes has no span."""
        value = sub_batch.origins[0].value() if sub_batch.origins else None
        if value is None:
            return
        try:
            first = self._header.prefix(value)
        except Malformed:  # a dead letter's
            return
        end = time.time_ns()
        begin = end - int(seconds * 1e9)
        published = min(begin, _timestamp(sub_batch.origins[0]) or begin)
        # A row of a snapshot was committed at any time before. Clocks of servers differ: no part is negative.
        committed = published if first.snapshot else min(published, first.ts_ms * 1_000_000)
        (topic, partition), offset = origin_of(sub_batch.origins[0])
        self._ids.next_trace = derived_trace_id(first.database, first.lsn)
        root = self._tracer.start_span(
            self._migration,
            context=self._api.set_span_in_context(self._api.INVALID_SPAN),
            kind=self._api.SpanKind.CONSUMER,
            start_time=committed,
            attributes={
                "messaging.system": "kafka",
                "messaging.destination.name": topic,
                "messaging.destination.partition.id": str(partition),
                "messaging.kafka.offset": offset,
                "messaging.batch.message_count": sum(advance.events for advance in sub_batch.advances),
                "db.namespace": self._database,
                "headrace.migration": self._migration,
                "headrace.run": run,
                "headrace.source": first.database,
                "headrace.lsn": format_lsn(first.lsn),
                "headrace.snapshot": first.snapshot,
                "headrace.changes": len(sub_batch.changes),
                "headrace.applied": applied,
                "headrace.dead_letters": len(sub_batch.dead_letters),
            },
        )
        if root.is_recording():
            within = self._api.set_span_in_context(root)
            for name, since, until in (
                ("publish", committed, published),
                ("wait", published, begin),
                ("apply", begin, end),
            ):
                self._tracer.start_span(name, context=within, start_time=since).end(until)
        root.end(end)


def effect_traces(settings: TracesSettings, migration: str, database: str) -> EffectTraces | None:
    """Return the traces of a consumer, None where they are off. Raises TracesNotInstalled."""
    return EffectTraces(settings, migration, database) if settings.sample else None


def derived_trace_id(source: str, lsn: int) -> int:
    """Return the 128-bit id of the trace of a transaction of `source` that was committed at `lsn`; never zero.

    Its low 56 bits, by which samplers decide, are as good as random.
    """
    digest = hashlib.blake2b(f"headrace:{source}:{lsn}".encode(), digest_size=16).digest()
    return int.from_bytes(digest, "big") or 1


def _imported() -> list[Any]:
    try:
        return [import_module(name) for name in _MODULES]
    except ModuleNotFoundError as error:
        raise TracesNotInstalled(f"traces.sample is set, and {error.name} is not installed") from error


def _derived_ids(ids: Any) -> Any:
    """Return a generator of ids whose next trace has the id `next_trace`; used by one thread."""

    class DerivedIds(ids.RandomIdGenerator):  # type: ignore[misc]
        next_trace: int | None = None

        def generate_trace_id(self) -> int:
            chosen, self.next_trace = self.next_trace, None
            return chosen or super().generate_trace_id()

    return DerivedIds()


def _timestamp(record: Any) -> int | None:
    """Return when Kafka got the record, in ns since 1970; None if it does not say."""
    _, milliseconds = record.timestamp()
    return milliseconds * 1_000_000 if milliseconds > 0 else None
