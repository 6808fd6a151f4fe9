"""Prometheus metrics of a service; docs/reference/metrics.md is generated from them.

prometheus-client also exports the process's own memory and CPU time. Series of a migration that are read from its
ledger are exported by each of its consumers, with the same values.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram, Info

from infra.service.event_histogram import EventHistogram

BUILD: Final = Info("headrace_build", "The version of headrace, and the codec that it uses (C or Python).")
READY: Final = Gauge("headrace_service_ready", "1 while nothing that the service noticed itself keeps it from working.")

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
CATALOG_XMIN_AGE: Final = Gauge(
    "headrace_slot_catalog_xmin_age_transactions",
    "Age of the oldest transaction whose catalog rows the slot keeps VACUUM from removing.",
    ["source"],
)
LAG_BYTES: Final = Gauge(
    "headrace_replication_lag_bytes", "WAL between the end of the WAL and the stream's position.", ["source"]
)
PUBLISH_LATENCY: Final = EventHistogram(
    "headrace_publish_latency_seconds",
    "From a commit in the source to that in Kafka: each event counts with the last transaction of its batch.",
    "source",
)
CHUNKS: Final = Gauge(
    "headrace_snapshot_chunks", "Estimated number of chunks of a table's snapshot.", ["source", "table"]
)
CHUNKS_DONE: Final = Gauge("headrace_snapshot_chunks_done", "Published chunks of that snapshot.", ["source", "table"])
CHUNK_TIME: Final = Histogram(
    "headrace_chunk_seconds",
    "Time to read a chunk and to commit it in Kafka.",
    ["source"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
SNAPSHOT_THROTTLED: Final = Gauge(
    "headrace_snapshot_throttled",
    "1 while a database health indicator throttles the source's snapshots.",
    ["source", "indicator"],
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

LAG: Final = Gauge(
    "headrace_consumer_lag_events",
    "Offsets between the consumer's position and the end of a partition that it has.",
    ["migration", "topic", "partition"],
)
ETA: Final = Gauge(
    "headrace_consumer_eta_seconds",
    "Time until the consumer has read its lag, at its latest rate; +Inf while it reads nothing.",
    ["migration"],
)
EFFECT_LATENCY: Final = EventHistogram(
    "headrace_effect_latency_seconds",
    "From a commit in the source to that of its effect, by the clocks of both servers: each changed row counts with"
    " the first event of its transaction. Rows of snapshots are left out.",
    "migration",
)
TRANSACTION_TIME: Final = Histogram(
    "headrace_transaction_seconds",
    "Time of a consumer's transaction.",
    ["migration"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 2.5, 5, 10, 30),
)

STATE: Final = Gauge(
    "headrace_migration_state",
    "1 for the migration's present state, 0 for every other one.",
    ["migration", "state"],
)
CONSUMERS: Final = Gauge(
    "headrace_migration_consumers", "Consumers of the migration that have partitions.", ["migration"]
)
WAITING_DEAD_LETTERS: Final = Gauge(
    "headrace_migration_dead_letters_waiting", "Dead letters that were neither retried nor discarded.", ["migration"]
)
REMAINING: Final = Gauge(
    "headrace_migration_remaining_rows",
    "Rows left to change, counted once a minute; by the planner's estimate where counting takes long.",
    ["migration"],
)
ESTIMATED: Final = Gauge(
    "headrace_migration_remaining_estimated", "1 while the remaining rows are an estimate.", ["migration"]
)
