"""Commits what was read: records, states and the position in one Kafka transaction, which the slot then follows.

Killed before Kafka's commit, nothing of it is there; killed after it, the slot sends again what the position says is
published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import psycopg
from pydantic import BaseModel

from infra.service import log, metrics
from infra.state.positions import SnapshotState, StreamState, handover_key, record_key
from producers.publish.capture import Capture
from producers.publish.kafka_transaction import Relay
from producers.publish.table_publisher import TableFeed
from producers.session import handover
from producers.session.resume import ServerLog
from producers.session.slot_monitor import Guardian
from producers.session.snapshot_requests import Requests
from producers.source.transactions import current_snapshot, next_xid
from producers.watch.catalog_watch import TableWatch
from schemas.positions import Lsn


@dataclass(frozen=True, slots=True)
class Restart:
    """Why a session ends and its source begins another: a table is to be read anew.

    None: partitions were added of which the server would send no changes; the stream begins again, after that.
    """

    table: str | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """Who writes a source's records, and of which slot and server they are."""

    source: str
    instance: str
    slot: str
    server: ServerLog


class Commits:
    """Commits for one session."""

    def __init__(
        self,
        sql: psycopg.Connection[Any],
        identity: Identity,
        feeds: Sequence[TableFeed],
        capture: Capture,
        relay: Relay,
        requests: Requests,
        watch: TableWatch,
        guardian: Guardian,
    ) -> None:
        self._sql = sql
        self._identity = identity
        self._feeds = feeds
        self._capture = capture
        self._relay = relay
        self._requests = requests
        self._watch = watch
        self._guardian = guardian

    @property
    def pending(self) -> bool:
        """Whether there is anything to commit."""
        return self._capture.moved or bool(self._relay.pending)

    def send(self) -> None:
        """Give the producer's client what the tables' feeds have collected; nothing of it is there before a commit."""
        for feed in self._feeds:
            if feed.waiting:
                self._relay.send(feed.table.topic, feed.take())

    def commit(
        self,
        states: Iterable[tuple[str, SnapshotState | None]] = (),
        left_out: Mapping[str, SnapshotState] = MappingProxyType({}),
        *,
        confirm: Callable[[Lsn], object] = lambda _: None,
    ) -> Restart | None:
        """Publish what waits, with the position, in one Kafka transaction; then have the slot forget it by `confirm`.

        What is recorded of tables that are `left_out` restarts nothing: one that is to be read anew is so at a later
        start, once it can be captured again. Raises OwnershipMoved once the source has no table left.
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
        anew = [name for name, state in changed.items() if state is not None and state.anew and name not in left_out]
        changed = {**left_out, **changed}
        self._watch.tell(state for state in changed.values() if state is not None)
        moved = capture.handovers
        changed.update(
            (feed.table.name, None if feed.away else feed.state)
            for feed in self._feeds
            if feed.table.gitlab_schema in moved
        )
        self.send()
        if capture.unseen.xids:
            capture.unseen.visible_in(current_snapshot(self._sql)[0])
        self._relay.record(self._records(changed))
        self._relay.commit()
        self._count()
        capture.moved = False
        capture.published = 0
        confirm(capture.confirmed)
        if moved:
            capture.handovers = {}
            away = [name for name, given in moved.items() if given]
            log.get(**{log.SOURCE: self._identity.source}).info("change of owner", away=away)
            handover.require_any_here(self._identity.source, self._feeds)
        if anew:
            return Restart(anew[0])
        return Restart() if self._watch.stream_lacks_partitions else None

    def _changed(self, states: Iterable[tuple[str, SnapshotState | None]]) -> dict[str, SnapshotState | None]:
        changed: dict[str, SnapshotState | None] = {}
        for row in self._capture.take_requests():
            changed.update(self._requests.take(row))
        changed.update(states)
        # Later: what was noted since, by this commit too, is newer than what the caller has.
        changed.update((feed.table.name, feed.state) for feed in self._capture.settle())
        return changed

    def _records(self, changed: Mapping[str, SnapshotState | None]) -> list[tuple[bytes, BaseModel | None]]:
        source, capture = self._identity.source, self._capture
        records: list[tuple[bytes, BaseModel | None]] = [
            (record_key(source, table), state) for table, state in changed.items()
        ]
        records += ((handover_key(source, name), given) for name, given in capture.handovers.items())
        return [*records, *capture.strays.records(), (record_key(source), self._stream_state())]

    def _count(self) -> None:
        source, capture = self._identity.source, self._capture
        metrics.PUBLISHED.labels(source).inc(capture.published)
        metrics.CONFIRMED_LSN.labels(source).set(capture.confirmed)
        metrics.COMMIT_TIME.labels(source).set(capture.commit_ms / 1000)

    def _stream_state(self) -> StreamState:
        identity, capture, rate = self._identity, self._capture, self._guardian.rate
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
        )
