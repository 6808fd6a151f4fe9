"""A group member: its assigned partitions, their positions, and waiting without leaving the group.

Kafka's committed offsets follow the ledger and are never read: `positions` comes from the ledger at each assignment.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from consumers.delivery.partition_lag import lag_of
from consumers.delivery.topic_identity import TopicIdentity, TopicRecreated, require_there
from consumers.ledger.progress import Entry, Place, member_name
from infra.kafka import clients, topics
from infra.service import log
from infra.service.service_state import THIS
from infra.settings.model import KafkaSettings
from schemas.errors import PreflightFailed, Unavailable
from schemas.positions import Offset

Assigned = Callable[[Sequence[Place]], Mapping[Place, Entry]]
"""Called with newly assigned partitions; returns their ledger entries."""

SESSION_TIMEOUT_MS: Final = 10_000
_MAX_POLL_INTERVAL_MS: Final = 3_600_000
"""Long, since a transaction may wait for a lock. Heartbeats show that it is alive; a zombie writes nothing."""
_REQUEST_SECONDS: Final = 10.0
_LEAVE_SECONDS: Final = 0.8
_TICK: Final = 0.1
_ABSENT_SECONDS: Final = 2.0
"""How long the group may wait for this group member during a rebalance."""
_FROZEN_SECONDS: Final = 1.0
"""After this long without a poll, a topic may have been recreated unnoticed."""


class Group:
    """A group member of a migration's consumer group; logs a partition that cannot be sought for `stall_seconds`."""

    def __init__(
        self,
        settings: KafkaSettings,
        group: str,
        *,
        assigned: Assigned,
        stopping: threading.Event,
        stall_seconds: float = 5.0,
    ) -> None:
        self._settings = settings
        self._stall_seconds = stall_seconds
        self._assigned = assigned
        self._stopping = stopping
        self._held = self._quiet = False
        self._generation = 0
        self._polled = 0.0
        self._waiting_since = self._next_warning = 0.0
        self._there = False
        self._topics = TopicIdentity(settings, stopping)
        self._log = log.get(group=group)
        self.positions: dict[Place, Offset] = {}
        """The next offset of each assigned partition; the runtime advances it after each commit."""
        self._aside: set[Place] = set()
        self._returning: set[Place] = set()
        with clients.translated(settings):
            self._consumer: Consumer = clients.consumer(
                settings,
                group,
                client_id=member_name(),
                partition_assignment_strategy="cooperative-sticky",
                session_timeout_ms=SESSION_TIMEOUT_MS,
                heartbeat_interval_ms=SESSION_TIMEOUT_MS // 5,
                max_poll_interval_ms=_MAX_POLL_INTERVAL_MS,
                # How soon an added partition or a recreated topic is noticed.
                topic_metadata_refresh_interval_ms=10_000,
                enable_partition_eof=True,
                # librdkafka prefetches 64 MB by default, and 1 MB per partition at a time; compressed events are many
                # times as large in memory. These limits still exceed a batch, and a larger event arrives all the same.
                defaults={"queued.max.messages.kbytes": 8_192, "fetch.message.max.bytes": 262_144},
                # Never guess an offset that is out of range: see _start.
                auto_offset_reset="error",
                on_commit=self._on_commit,
            )

    @property
    def generation(self) -> int:
        """A number that changes whenever partitions are assigned or revoked."""
        return self._generation

    def missing(self, names: Sequence[str]) -> list[str]:
        """Return the topics of `names` that do not exist yet; waits for Kafka if it has answered before.

        Raises Interrupted when stopped meanwhile, and AccessDenied for a topic that this consumer may not see, which
        Kafka's list of all topics omits like one that does not exist.
        """

        def asked() -> list[str]:
            with clients.translated(self._settings):
                listed = self._consumer.list_topics(timeout=_REQUEST_SECONDS).topics
                unlisted = [name for name in names if name not in listed or listed[name].error is not None]
                # A topic missing from the list may exist nevertheless.
                named = {name: self._consumer.list_topics(name, timeout=_REQUEST_SECONDS).topics for name in unlisted}
                return [name for name, found in named.items() if not topics.is_there(found.get(name))]

        while True:
            try:
                absent = clients.ask(asked, self._stopping)
                break
            except Unavailable as error:
                if not self._there:
                    raise
                self._wait_for_kafka(error)
        self._there = True
        return absent

    def join(self, names: Sequence[str]) -> None:
        """Join the group; partitions are assigned during `poll`."""
        with clients.translated(self._settings):
            self._consumer.subscribe(
                list(names), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke
            )

    def poll(self, limit: int, seconds: float) -> list[Message]:
        """Return at most `limit` records, waiting up to `seconds` for the first.

        Ends of partitions are among them. Other errors are logged if transient, raised if not. Raises whatever
        `assigned` raised.
        """
        if self._returning:
            self._return()
        self._topics.look()
        with clients.translated(self._settings):
            first = self._consumer.poll(seconds)
            records = [] if first is None else [first]
            if records and limit > 1:
                records += self._consumer.consume(limit - 1, timeout=0)
        self._topics.doubtful |= time.monotonic() - self._polled > seconds + _FROZEN_SECONDS
        self._polled = time.monotonic()
        if records:
            records = self._without_errors(records)
        if records and self._topics.doubtful and not self._topics.confirm():
            self._read_again(records)
            return []
        return records

    def confirm(self) -> bool:
        """Return whether everything read is from the topics in the ledger; False if Kafka does not answer.

        Raises TopicRecreated. Call it before reporting that everything was read.
        """
        return self._topics.confirm()

    def commit(self) -> None:
        """Commit `positions` to Kafka, for tools that show lag; a failure does no harm."""
        offsets = [TopicPartition(*place, offset) for place, offset in self.positions.items() if offset > 0]
        if offsets:
            try:
                self._consumer.commit(offsets=offsets, asynchronous=True)
            except KafkaException as error:
                self._log.debug("offsets not committed to Kafka", detail=error.args[0].str())

    def lag(self) -> dict[Place, int]:
        """Return the lag of each assigned partition, in offsets; see consumers.delivery.partition_lag."""
        return lag_of(self._consumer, self.positions)

    def rest(self, seconds: float) -> bool:
        """Pause for `seconds` between two transactions; returns what `wait` returns.

        `wait` discards prefetched records, so a short pause sleeps instead, as long as the group does not notice.
        """
        if time.monotonic() + seconds - self._polled > _ABSENT_SECONDS:
            return self.wait(seconds)
        self._stopping.wait(seconds)
        return True

    def wait(self, seconds: float, *, still: Callable[[], bool] = lambda: False) -> bool:
        """Stay in the group for `seconds` without reading, and repeat while `still` returns true.

        Returns whether records read before are still valid. They are not if partitions were assigned or revoked
        meanwhile: call `reposition` then. Ends early when stopping.
        """
        if self._quiet:
            # Within a Kafka callback or another wait; heartbeats continue in the background.
            self._stopping.wait(seconds)
            return True
        generation = self._generation
        disturbed = False
        self._quiet = self._held = True
        try:
            self._pause(list(self.positions))
            deadline = time.monotonic() + seconds
            while not self._stopping.is_set():
                left = deadline - time.monotonic()
                if left <= 0:
                    if not still():
                        break
                    # From now, so that there is a poll before the next call of `still`, however long it took.
                    deadline = time.monotonic() + seconds
                    continue
                THIS.advance()
                with clients.translated(self._settings):
                    record = self._consumer.poll(min(left, _TICK))
                self._polled = time.monotonic()
                # A paused partition delivers only what was in flight. An end of partition counts too, since it is
                # delivered once.
                disturbed |= record is not None
        finally:
            self._quiet = self._held = False
            self._topics.doubtful = True
            self._resume([place for place in self.positions if place not in self._aside])
        return generation == self._generation and not disturbed

    def reposition(self, entries: Mapping[Place, Entry]) -> bool:
        """Continue reading from `entries`; records that were read but not applied arrive again.

        Returns False, with nothing lost, if partitions were assigned or revoked since `entries` were read: read them
        again.
        """
        if set(entries) != set(self.positions):
            return False
        generation = self._generation
        targets = {place: TopicPartition(*place, self._start(entry)) for place, entry in entries.items()}
        self._topics.expect(entries.values())
        waiting = dict(targets)
        self._waiting_since = time.monotonic()
        while True:
            for place, target in list(waiting.items()):
                if self._seek(target):
                    self.positions[place] = entries[place].next_offset
                    del waiting[place]
            if not waiting or self._stopping.is_set():
                return True
            # A partition can only be sought once fetching has started, a moment after the assignment. Records that
            # arrive in this wait are discarded, so partitions already sought are sought again.
            good = self.wait(_TICK)
            if self._generation != generation:
                return False
            if not good:
                waiting = dict(targets)

    @property
    def aside(self) -> Collection[Place]:
        """The partitions that are set aside. A partition revoked meanwhile is not, even if it was assigned again."""
        return self._aside

    def set_aside(self, place: Place, offset: Offset) -> None:
        """Stop reading `place` until `bring_back`, then continue from `offset`; other partitions are unaffected.

        `positions[place]` is `offset` meanwhile. The state survives `wait`, `rest`, `reposition` and rebalances that
        leave the partition assigned; a revocation or a new assignment clears it. Does nothing for a partition that is
        not assigned.
        """
        if place not in self.positions:
            return
        # Discards its prefetched records.
        self._pause([place])
        self._aside.add(place)
        self._returning.discard(place)
        self.positions[place] = offset

    def bring_back(self, place: Place) -> None:
        """Continue reading `place` from `positions[place]`. Does nothing unless it is set aside."""
        if place in self._aside:
            if not self._returning:
                self._waiting_since = time.monotonic()
            self._returning.add(place)
            self._return()

    def _return(self) -> None:
        """Resume partitions brought back; those that cannot be sought yet are retried at the next poll."""
        for place in sorted(self._returning):
            offset = self.positions[place]
            if self._seek(TopicPartition(*place, offset or OFFSET_BEGINNING)):
                self._returning.discard(place)
                self._aside.discard(place)
                self._resume([place])

    def _read_again(self, records: Sequence[Message]) -> None:
        """Make polled records that were not returned arrive again."""
        for place in {Place(str(record.topic()), int(record.partition() or 0)) for record in records}:
            self.set_aside(place, self.positions.get(place, Offset(0)))
            self.bring_back(place)
        self._stopping.wait(_TICK)

    def _seek(self, target: TopicPartition) -> bool:
        """Return whether the seek succeeded; it fails until fetching has started after an assignment."""
        try:
            self._consumer.seek(target)
        except KafkaException as error:
            now = time.monotonic()
            if now > max(self._next_warning, self._waiting_since + self._stall_seconds):
                self._next_warning = now + self._stall_seconds
                self._log.warning(
                    "partition cannot be read, retrying",
                    partition=f"{target.topic}/{target.partition}",
                    offset=target.offset,
                    reason=error.args[0].str(),
                    seconds=round(now - self._waiting_since),
                )
            return False
        return True

    def _forget(self, places: Sequence[Place]) -> None:
        self._aside.difference_update(places)
        self._returning.difference_update(places)

    def close(self) -> None:
        """Leave the group, so that other group members take over immediately."""
        self.positions.clear()
        # If leaving times out, missing heartbeats have the same effect.
        clients.leave(self._consumer, _LEAVE_SECONDS)
        self._topics.close()

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._generation += 1
        places = [Place(partition.topic, partition.partition) for partition in partitions]
        quiet, self._quiet = self._quiet, True
        try:
            entries = self._assigned(places) if places else {}
        finally:
            self._quiet = quiet
        targets = [TopicPartition(*place, self._start(entries[place])) for place in places]
        consumer.incremental_assign(targets)
        self.positions.update({place: entries[place].next_offset for place in places})
        self._topics.expect(entries.values())
        self._forget(places)
        # A partition revoked while paused is still paused when it is assigned again.
        (self._pause if self._held else self._resume)(places)
        if places:
            self._log.info("assigned", partitions={f"{p.topic}/{p.partition}": entries[p].next_offset for p in places})

    def _on_revoke(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        # confluent-kafka unassigns them after this; no transaction is running, since polling is not applying.
        self._generation += 1
        places = [Place(partition.topic, partition.partition) for partition in partitions]
        for place in places:
            self.positions.pop(place, None)
        self._forget(places)
        self._topics.keep_only(place.topic for place in self.positions)
        self._log.info("revoked", partitions=[f"{p.topic}/{p.partition}" for p in partitions])

    def _on_commit(self, error: KafkaError | None, _partitions: list[TopicPartition]) -> None:
        if error is not None:
            self._log.debug("offsets not committed to Kafka", detail=error.str())

    def _start(self, entry: Entry) -> int:
        """Return the offset to read from; raises TopicRecreated if the topic cannot have that offset."""
        low, high = self._bounds(entry.place)
        return OFFSET_BEGINNING if require_there(entry, low, high) == 0 else int(entry.next_offset)

    def _bounds(self, place: Place) -> tuple[int, int]:
        """Return the partition's first offset and its end, waiting for a broker that does not answer."""
        while True:
            try:
                with clients.translated(self._settings):
                    low, high = self._consumer.get_watermark_offsets(TopicPartition(*place), timeout=_REQUEST_SECONDS)
                    return low, high
            except Unavailable as error:
                self._wait_for_kafka(error)

    def _wait_for_kafka(self, error: Unavailable) -> None:
        """Wait briefly; raises the error when stopping."""
        self._log.warning("waiting for Kafka", reason=str(error))
        if self._stopping.wait(_TICK):
            raise error

    def _without_errors(self, records: list[Message]) -> list[Message]:
        if not [record for record in records if record.error() is not None]:
            return records
        kept = []
        for record in records:
            error = record.error()
            if error is None or error.code() == KafkaError._PARTITION_EOF:
                kept.append(record)
            elif error.code() == KafkaError._AUTO_OFFSET_RESET:
                where = f"{record.topic()}/{record.partition()}"
                raise TopicRecreated(f"{where} does not have the events that the ledger needs next: {error.str()}")
            elif error.fatal() or isinstance(clients.translate(error, self._settings), PreflightFailed):
                raise clients.translate(error, self._settings)
            else:
                self._topics.doubtful = True
                self._log.warning("Kafka error", detail=error.str(), code=error.name())
        return kept

    def _pause(self, places: Sequence[Place]) -> None:
        if places:
            self._consumer.pause([TopicPartition(*place) for place in places])

    def _resume(self, places: Sequence[Place]) -> None:
        if places:
            self._consumer.resume([TopicPartition(*place) for place in places])
