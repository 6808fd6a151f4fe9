"""Membership in a consumer group: which partitions are ours, where each stands, and waiting without leaving.

Kafka's committed offsets follow the ledger and are never read: `positions` comes from the ledger at each assignment.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from consumers.delivery.topic_identity import TopicIdentity, TopicRecreated, require_there
from consumers.ledger.progress import Entry, Place
from infra.kafka import clients, topics
from infra.service import log
from infra.settings.model import KafkaSettings
from schemas.errors import PreflightFailed, Unavailable
from schemas.positions import Offset

Assigned = Callable[[Sequence[Place]], Mapping[Place, Entry]]
"""Called with newly assigned partitions; returns where the ledger says that they stand."""

SESSION_TIMEOUT_MS: Final = 10_000
_MAX_POLL_INTERVAL_MS: Final = 3_600_000
"""A transaction may wait long for a lock; that a member is alive its heartbeat says, and a zombie writes nothing."""
_REQUEST_SECONDS: Final = 10.0
_LEAVE_SECONDS: Final = 0.8
_TICK: Final = 0.1
_ABSENT_SECONDS: Final = 2.0
"""How long the group may have to wait for this member's answer, with nothing wrong."""
_FROZEN_SECONDS: Final = 1.0
"""Without a poll for so long, a topic may have been made anew without any sign of it."""
_STALL_SECONDS: Final = 5.0
"""A partition cannot be sought for a moment after its assignment; for longer is worth a line in the log."""


def member_name() -> str:
    """Return `host:pid`, by which an operator finds this process."""
    return f"{socket.gethostname()}:{os.getpid()}"


class Group:
    """One member of a migration's consumer group."""

    def __init__(
        self,
        settings: KafkaSettings,
        group: str,
        *,
        assigned: Assigned,
        stopping: threading.Event,
    ) -> None:
        self._settings = settings
        self._assigned = assigned
        self._stopping = stopping
        self._held = self._quiet = False
        self._generation = 0
        self._polled = 0.0
        self._waiting_since = self._next_word = 0.0
        self._there = False
        self._topics = TopicIdentity(settings, stopping)
        self._log = log.get(group=group)
        self.positions: dict[Place, Offset] = {}
        """The offset that each assigned partition needs next; the runtime moves it after each commit."""
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
                # A partition that was added, or a topic made anew, is seen within this.
                topic_metadata_refresh_interval_ms=10_000,
                enable_partition_eof=True,
                # librdkafka reads ahead 64 MB by default, and 1 MB of each partition at a time, which compressed
                # events make many times as much. This is still more than a batch; a larger event arrives all the same.
                # Fetching rests once that queue is full, for a second by default, which is most of the time.
                defaults={
                    "queued.max.messages.kbytes": 8_192,
                    "fetch.message.max.bytes": 262_144,
                    "fetch.queue.backoff.ms": 5,
                },
                # Out of range is never an occasion to guess: see _start.
                auto_offset_reset="error",
                on_commit=self._on_commit,
            )

    @property
    def generation(self) -> int:
        """A number that changes whenever partitions come or go."""
        return self._generation

    def missing(self, names: Sequence[str]) -> list[str]:
        """Return those of the topics `names` that do not exist yet; waits for a Kafka that has answered once.

        Raises Interrupted when stopped meanwhile, and AccessDenied for a topic that this consumer may not see: Kafka's
        list of all topics leaves it out, as it does one that does not exist.
        """

        def asked() -> list[str]:
            with clients.translated(self._settings):
                listed = self._consumer.list_topics(timeout=_REQUEST_SECONDS).topics
                unlisted = [name for name in names if name not in listed or listed[name].error is not None]
                # One that the list leaves out may be there all the same.
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
        """Become a member; partitions arrive during `poll`."""
        with clients.translated(self._settings):
            self._consumer.subscribe(
                list(names), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke
            )

    def poll(self, limit: int, seconds: float) -> list[Message]:
        """Return what has arrived, at most `limit` records, waiting up to `seconds` for the first.

        Ends of partitions are among them; other errors are logged when Kafka gets over them, raised if not.
        Raises whatever `assigned` raised.
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
        """Return whether all that was read is of the topics that the ledger is about; False when Kafka is silent.

        Raises TopicRecreated. Asked before anybody is told that everything was read.
        """
        return self._topics.confirm()

    def commit(self) -> None:
        """Let Kafka's offsets follow `positions`, for tools that show them; a failure does no harm."""
        offsets = [TopicPartition(*place, offset) for place, offset in self.positions.items() if offset > 0]
        if offsets:
            try:
                self._consumer.commit(offsets=offsets, asynchronous=True)
            except KafkaException as error:
                self._log.debug("offsets not committed to Kafka", detail=error.args[0].str())

    def rest(self, seconds: float) -> bool:
        """Let `seconds` pass between two transactions; returns what `wait` returns.

        Waiting throws away what was read ahead, so that a short rest is slept, as long as nobody misses us.
        """
        if time.monotonic() + seconds - self._polled > _ABSENT_SECONDS:
            return self.wait(seconds)
        self._stopping.wait(seconds)
        return True

    def wait(self, seconds: float, *, still: Callable[[], bool] = lambda: False) -> bool:
        """Stay in the group for `seconds` without reading, and as long again while `still` says so.

        Returns whether what was read before is still good; it is not when partitions came or went meanwhile: then
        call `reposition`. Ends early when stopping.
        """
        if self._quiet:
            # Within a callback of Kafka, or within another wait: the heartbeat goes on by itself.
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
                    # From now, so that there is a poll before it is asked again, however long the answer took.
                    deadline = time.monotonic() + seconds
                    continue
                with clients.translated(self._settings):
                    record = self._consumer.poll(min(left, _TICK))
                self._polled = time.monotonic()
                # Nothing arrives from a paused partition, unless it was under way already; an end of a partition
                # counts too, since it is told once.
                disturbed |= record is not None
        finally:
            self._quiet = self._held = False
            self._topics.doubtful = True
            self._resume([place for place in self.positions if place not in self._aside])
        return generation == self._generation and not disturbed

    def reposition(self, entries: Mapping[Place, Entry]) -> bool:
        """Read on from where `entries` say; what was read before and not applied arrives again.

        Returns False, with nothing lost, when partitions came or went since `entries` were asked for: ask again.
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
            # A partition can only be sought once its fetching began, a moment after the assignment. What arrives
            # in this wait is thrown away, so that what was sought already is sought again.
            good = self.wait(_TICK)
            if self._generation != generation:
                return False
            if not good:
                waiting = dict(targets)

    @property
    def aside(self) -> Collection[Place]:
        """The partitions that are set aside. One that was taken away meanwhile is none, even if it is back."""
        return self._aside

    def set_aside(self, place: Place, offset: Offset) -> None:
        """Bring nothing more of `place` until `bring_back`, then read it from `offset` on; the others go on.

        `positions[place]` is `offset` meanwhile. `wait`, `rest` and rebalances that leave the partition here keep it
        so; `reposition` moves it and keeps it so too. Once it is revoked or assigned anew nothing is known of this.
        Does nothing for a partition that is not ours.
        """
        if place not in self.positions:
            return
        # Throws away what was read ahead of it.
        self._pause([place])
        self._aside.add(place)
        self._returning.discard(place)
        self.positions[place] = offset

    def bring_back(self, place: Place) -> None:
        """Read `place` on from `positions[place]`. Does nothing for one that is not set aside (any more)."""
        if place in self._aside:
            if not self._returning:
                self._waiting_since = time.monotonic()
            self._returning.add(place)
            self._return()

    def _return(self) -> None:
        """Read on what was brought back; what cannot be sought yet is tried again at the next poll."""
        for place in sorted(self._returning):
            offset = self.positions[place]
            if self._seek(TopicPartition(*place, offset or OFFSET_BEGINNING)):
                self._returning.discard(place)
                self._aside.discard(place)
                self._resume([place])

    def _read_again(self, records: Sequence[Message]) -> None:
        """Have what was polled and not given to anybody arrive again."""
        for place in {Place(str(record.topic()), int(record.partition() or 0)) for record in records}:
            self.set_aside(place, self.positions.get(place, Offset(0)))
            self.bring_back(place)
        self._stopping.wait(_TICK)

    def _seek(self, target: TopicPartition) -> bool:
        """Return whether it was done; not while the partition is not fetched, such as a moment after the assignment."""
        try:
            self._consumer.seek(target)
        except KafkaException as error:
            now = time.monotonic()
            if now > max(self._next_word, self._waiting_since + _STALL_SECONDS):
                self._next_word = now + _STALL_SECONDS
                self._log.warning(
                    "a partition cannot be read; it is tried again",
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
        """Leave the group, so that others take over at once."""
        self.positions.clear()
        # Where that is not done in time, the heartbeat's end says it too.
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
        # A partition that was taken away while it was paused is paused still when it comes back.
        (self._pause if self._held else self._resume)(places)
        if places:
            self._log.info("assigned", partitions={f"{p.topic}/{p.partition}": entries[p].next_offset for p in places})

    def _on_revoke(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        # confluent-kafka takes them away itself after this; nothing is under way, since polling is not applying.
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
        """Return the offset to read from; raises TopicRecreated when the topic cannot have that offset."""
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
        """Let a moment pass; raises the error when stopping."""
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
                self._log.warning("kafka", detail=error.str(), code=error.name())
        return kept

    def _pause(self, places: Sequence[Place]) -> None:
        if places:
            self._consumer.pause([TopicPartition(*place) for place in places])

    def _resume(self, places: Sequence[Place]) -> None:
        if places:
            self._consumer.resume([TopicPartition(*place) for place in places])
