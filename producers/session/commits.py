"""Commits records, states and the position in one Kafka transaction, then confirms the slot.

After a kill before Kafka's commit, nothing of it is visible. After a kill between that commit and the slot's
confirmation, the slot resends changes that the position shows as published.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import psycopg
from pydantic import BaseModel

from infra.postgres.moments import current_moment, next_xid
from infra.service import log, metrics
from infra.state.positions import SnapshotState, StreamState, handover_key, record_key
from producers.publish.capture import Capture
from producers.publish.kafka_transaction import Relay
from producers.publish.table_publisher import TableFeed
from producers.session import handover
from producers.session.resume import ServerWal
from producers.session.slot_monitor import SlotMonitor
from producers.session.snapshot_requests import Requests
from producers.watch.catalog_watch import TableWatch
from schemas.lazy_dataclass import dataclass
from schemas.positions import Lsn

FROM_SCRATCH: Final = "re-snapshot from scratch"
PARTITIONS_ADDED: Final = "partitions were added"
"""The server sends their changes only to a stream that starts afterwards."""


@dataclass(frozen=True)
class Restart:
    """The reason why a source ends its session and opens another; `table` is to be re-snapshotted from scratch."""

    reason: str
    table: str | None = None


@dataclass(frozen=True)
class Identity:
    """The writer of a source's records, and the slot and server from which they come."""

    source: str
    instance: str
    slot: str
    server: ServerWal


class Commits:
    """Commits for one session, as `identity`."""

    def __init__(
        self,
        sql: psycopg.Connection[Any],
        identity: Identity,
        feeds: Sequence[TableFeed],
        capture: Capture,
        relay: Relay,
        requests: Requests,
        watch: TableWatch,
        slot_monitor: SlotMonitor,
    ) -> None:
        self._sql = sql
        self.identity = identity
        self._feeds = feeds
        self._capture = capture
        self._relay = relay
        self._requests = requests
        self._watch = watch
        self._slot_monitor = slot_monitor
        self._unobserved = 0
        """Events published since the last observation of their latency."""
        self._observed_ms = capture.commit_ms

    @property
    def pending(self) -> bool:
        """Whether there is anything to commit."""
        return self._capture.moved or bool(self._relay.pending)

    def send(self) -> None:
        """Hand the feeds' records to the producer's client; they become visible with the commit."""
        for feed in self._feeds:
            if feed.waiting:
                self._relay.send(feed.table.topic, feed.take())

    def commit(
        self,
        states: Iterable[tuple[str, SnapshotState | None]] = (),
        left_out: Mapping[str, SnapshotState] = MappingProxyType({}),
        *,
        confirm: Callable[[Lsn], object] = lambda _: None,
        throttled_by: str | None = None,
    ) -> Restart | None:
        """Publish pending records and the position in one Kafka transaction; then `confirm` the position to the slot.

        Records of tables that are `left_out` restart nothing: such a table is re-snapshotted at a later start, once it
        can be captured again. `throttled_by` is recorded for `headrace status`. Raises OwnershipMoved once the source
        has no table left.
        """
        capture = self._capture
        self.send()
        if self._watch.passed(capture.position.commit_lsn):
            capture.reroute()
        capture.strays.missed(self._feeds, capture.handovers, lambda: next_xid(self._sql))
        for feed in self._feeds:
            if feed.copy.incomplete.too_many:
                feed.repeat_for_rows(next_xid(self._sql))
        changed = self._changed(states)
        from_scratch = [
            name for name, state in changed.items() if state is not None and state.from_scratch and name not in left_out
        ]
        changed = {**left_out, **changed}
        self._watch.log_stopped(state for state in changed.values() if state is not None)
        moved = capture.handovers
        changed.update(
            (feed.table.name, None if feed.away else feed.state)
            for feed in self._feeds
            if feed.table.gitlab_schema in moved
        )
        self.send()
        if capture.unseen.xids:
            capture.unseen.visible_in(current_moment(self._sql).snapshot)
        self._relay.record(self._records(changed, throttled_by))
        self._relay.commit()
        self._count()
        capture.moved = False
        capture.published = 0
        confirm(capture.confirmed)
        if moved:
            capture.handovers = {}
            away = [name for name, given in moved.items() if given]
            log.get(**{log.SOURCE: self.identity.source}).info("owner changed", away=away)
            handover.require_any_here(self.identity.source, self._feeds)
        if from_scratch:
            return Restart(FROM_SCRATCH, from_scratch[0])
        return Restart(PARTITIONS_ADDED) if self._watch.stream_lacks_partitions else None

    def _changed(self, states: Iterable[tuple[str, SnapshotState | None]]) -> dict[str, SnapshotState | None]:
        changed: dict[str, SnapshotState | None] = {}
        for row in self._capture.take_requests():
            changed.update(self._requests.take(row))
        changed.update(states)
        # Last: what was noted since, by this commit too, is newer than the caller's states.
        changed.update((feed.table.name, feed.state) for feed in self._capture.settle())
        return changed

    def _records(
        self, changed: Mapping[str, SnapshotState | None], throttled_by: str | None
    ) -> list[tuple[bytes, BaseModel | None]]:
        source, capture = self.identity.source, self._capture
        records: list[tuple[bytes, BaseModel | None]] = [
            (record_key(source, table), state) for table, state in changed.items()
        ]
        records += ((handover_key(source, name), given) for name, given in capture.handovers.items())
        return [*records, *capture.strays.records(), (record_key(source), self._stream_state(throttled_by))]

    def _count(self) -> None:
        source, capture = self.identity.source, self._capture
        metrics.PUBLISHED.labels(source).inc(capture.published)
        self._unobserved += capture.published
        if self._unobserved and capture.commit_ms != self._observed_ms:  # part of a transaction waits for its end
            latency = max(0.0, time.time() - capture.commit_ms / 1000)  # by the clocks of two servers
            metrics.PUBLISH_LATENCY.observe(source, latency, self._unobserved)
            self._unobserved = 0
        self._observed_ms = capture.commit_ms
        metrics.CONFIRMED_LSN.labels(source).set(capture.confirmed)
        metrics.COMMIT_TIME.labels(source).set(capture.commit_ms / 1000)

    def _stream_state(self, throttled_by: str | None) -> StreamState:
        identity, capture, rate = self.identity, self._capture, self._slot_monitor.rate
        return StreamState(
            source=identity.source,
            instance=identity.instance,
            slot=identity.slot,
            system_identifier=identity.server.system,
            commit_lsn=capture.position.commit_lsn,
            ordinal=capture.position.ordinal,
            confirmed_lsn=capture.confirmed,
            ts_ms=capture.commit_ms,
            unseen=capture.unseen.xids,
            timeline=identity.server.timeline,
            log_bytes_per_second=rate.bytes_per_second if rate else None,
            log_seconds=rate.seconds if rate else 0.0,
            refused_request=self._requests.refused,
            snapshot_throttled_by=throttled_by,
        )
