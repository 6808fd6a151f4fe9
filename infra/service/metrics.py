"""What a service tells Prometheus, on `metrics.port` of the settings; nothing listens when that is 0.

prometheus-client is the reference library for this; it also tells the process's own memory and processor time.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, start_http_server

from infra.settings.model import MetricsSettings
from schemas.errors import SettingsError

PUBLISHED: Final = Counter("headrace_published_events", "Changes of the stream published.", ["source"])
COPIED: Final = Counter("headrace_copied_rows", "Rows of snapshots published.", ["source", "table"])
COMPLETED: Final = Counter(
    "headrace_completed_rows", "Rows read by key, since their record left out a value.", ["source", "table"]
)
CONFIRMED_LSN: Final = Gauge("headrace_confirmed_lsn_bytes", "Log position up to which all is published.", ["source"])
COMMIT_TIME: Final = Gauge(
    "headrace_last_commit_timestamp_seconds", "When the last transaction that was published had committed.", ["source"]
)
STRAY_WRITES: Final = Gauge(
    "headrace_stray_writes", "Changes of a table in a database that had given it away.", ["source", "table"]
)
RETAINED_LOG: Final = Gauge("headrace_retained_log_bytes", "Log that the source's slot holds back.", ["source"])
STANDBY_AWAITED: Final = Gauge(
    "headrace_standby_awaited", "1 while the source's stream waits for a standby to confirm.", ["source"]
)
STALLS: Final = Counter(
    "headrace_kafka_stalls", "Calls of a producer that Kafka kept waiting for over a second.", ["transactional_id"]
)
STALLED: Final = Counter("headrace_kafka_stalled_seconds", "How long those calls took.", ["transactional_id"])

APPLIED: Final = Counter("headrace_applied_rows", "Rows that a migration changed.", ["migration"])
SKIPPED: Final = Counter("headrace_skipped_events", "Events that needed nothing.", ["migration"])
PARKED: Final = Counter("headrace_parked_events", "Events kept for a person.", ["migration"])
HELD: Final = Gauge("headrace_held", "1 while a migration is paused or held.", ["migration"])

WAITING: Final = Gauge(
    "headrace_waiting_partitions", "Partitions that wait for a transaction to be visible, or a lock.", ["migration"]
)
FAILED: Final = Gauge("headrace_migration_failed", "1 while a migration has failed.", ["migration"])

SUFFERING: Final = Gauge(
    "headrace_suffering", "1 while a health indicator of the database holds a migration.", ["migration", "indicator"]
)


def serve(settings: MetricsSettings) -> None:
    """Answer scrapes in a thread of its own until the process ends, if the settings name a port.

    Raises SettingsError when the port cannot be listened on.
    """
    if not settings.port:
        return
    try:
        start_http_server(settings.port, addr=settings.address)
    except OSError as error:
        raise SettingsError(
            f"metrics.port {settings.port} cannot be listened on: {error.strerror}",
            remedy="choose another port, or 0 for none",
        ) from error
