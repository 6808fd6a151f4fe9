"""Prometheus metrics of a service, served on `metrics.port`; port 0 serves none.

prometheus-client also exports the process's own memory and CPU time.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, start_http_server

from infra.settings.model import MetricsSettings
from schemas.errors import SettingsError

PUBLISHED: Final = Counter("headrace_published_events", "Change events published from the stream.", ["source"])
COPIED: Final = Counter("headrace_copied_rows", "Snapshot rows published.", ["source", "table"])
COMPLETED: Final = Counter(
    "headrace_completed_rows", "Rows re-read by key because their record lacked a value.", ["source", "table"]
)
CONFIRMED_LSN: Final = Gauge(
    "headrace_confirmed_lsn_bytes", "WAL position up to which all changes are published.", ["source"]
)
COMMIT_TIME: Final = Gauge(
    "headrace_last_commit_timestamp_seconds", "Commit time of the last published transaction.", ["source"]
)
STRAY_WRITES: Final = Gauge(
    "headrace_stray_writes", "Writes to a table in a database that no longer owns it.", ["source", "table"]
)
RETAINED_WAL: Final = Gauge(
    "headrace_slot_retained_wal_bytes", "WAL retained by the source's replication slot.", ["source"]
)
STANDBY_AWAITED: Final = Gauge(
    "headrace_standby_awaited", "1 while the source's stream waits for a standby to confirm.", ["source"]
)
STALLS: Final = Counter(
    "headrace_kafka_stalls", "Kafka producer calls that blocked for more than a second.", ["transactional_id"]
)
STALLED: Final = Counter("headrace_kafka_stalled_seconds", "Total time of those blocked calls.", ["transactional_id"])

APPLIED: Final = Counter("headrace_applied_rows", "Rows changed by a migration.", ["migration"])
SKIPPED: Final = Counter("headrace_skipped_events", "Events that required no change.", ["migration"])
DEAD_LETTERS: Final = Counter("headrace_dead_letters", "Events recorded as dead letters.", ["migration"])
SUSPENDED: Final = Gauge(
    "headrace_consumer_suspended", "1 while a consumer is paused, throttled or failed.", ["migration"]
)

WAITING: Final = Gauge(
    "headrace_waiting_partitions",
    "Partitions that wait for a transaction to become visible, or for a lock.",
    ["migration"],
)
FAILED: Final = Gauge("headrace_migration_failed", "1 if the migration has failed.", ["migration"])

THROTTLED: Final = Gauge(
    "headrace_consumer_throttled",
    "1 while a database health indicator throttles a migration.",
    ["migration", "indicator"],
)


def serve(settings: MetricsSettings) -> None:
    """Serve metrics in a thread until the process ends, if the settings have a port.

    Raises SettingsError if it cannot listen on the port.
    """
    if not settings.port:
        return
    try:
        start_http_server(settings.port, addr=settings.address)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on metrics.port {settings.port}: {error.strerror}",
            remedy="choose another port, or 0 to serve no metrics",
        ) from error
