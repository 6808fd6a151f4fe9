"""Detects that a topic was deleted and recreated since the ledger recorded it.

A recreated topic has the same name, and offsets from 0: a consumer at offset 4,000 would continue at 4,000 of the new
topic as soon as it has that many, and silently lose everything before. The topic id, which Kafka assigns at creation
and never reuses, distinguishes the two. Kafka's clients do not compare it, so headrace checks it:

- before applying anything that was fetched while a change could go unnoticed: after an assignment, a pause, a seek, a
  Kafka error, and whenever nothing was polled for a second, as in a frozen process;
- every two seconds while records are polled, in the background;
- before a consumer reports that it has caught up or that its migration is complete.

The ledger keeps the topic id until a replay. So if events of a recreated topic were applied, between two checks or by a
consumer that was then killed, every check and every later start refuses.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final

from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from consumers.ledger.progress import Entry
from infra.kafka import clients
from infra.service import log
from infra.settings.model import KafkaSettings
from schemas.errors import Refused
from schemas.positions import Offset

_REQUEST_SECONDS: Final = 10.0
_EVERY_SECONDS: Final = 2.0
_WARN_SECONDS: Final = 10.0
_TICK: Final = 0.05

Answers = Mapping[str, "Future[Any]"]


class TopicRecreated(Refused):
    """Read it from the beginning with `headrace replay`."""


class TopicIdentity:
    """Compares the ids of one consumer's topics with those in its ledger."""

    def __init__(self, settings: KafkaSettings, stopping: threading.Event) -> None:
        self._settings = settings
        self._stopping = stopping
        self._client: AdminClient | None = None
        self._ids: dict[str, str] = {}
        self._asked: Answers = {}
        self._next = self._next_warning = 0.0
        self._log = log.get()
        self.doubtful = False
        """Whether the next poll may return records of a recreated topic that was not noticed."""

    def expect(self, entries: Iterable[Entry]) -> None:
        """Compare these topics from now on with the ids in the ledger."""
        self._ids |= {entry.place.topic: entry.topic_id for entry in entries}
        self.doubtful = True

    def keep_only(self, topics: Iterable[str]) -> None:
        """Stop checking other topics, which have no assigned partitions."""
        kept = set(topics)
        self._ids = {topic: expected for topic, expected in self._ids.items() if topic in kept}

    def look(self) -> None:
        """Process the last request's answer, if available, and send the next one when due; never waits.

        Raises TopicRecreated.
        """
        now = time.monotonic()
        if self._asked and all(future.done() for future in self._asked.values()):
            self._compare(self._asked)
            self._asked = {}
        elif not self._asked and self._ids and now >= self._next:
            self._asked = self._ask()

    def confirm(self) -> bool:
        """Send a request and wait for the answer; return whether each topic is unchanged.

        If so, everything fetched before is from that topic. False, and logged, if Kafka does not answer or does not
        know a topic, or the consumer is stopping. Raises TopicRecreated.
        """
        if not self._ids:
            return True
        asked = self._ask()
        deadline = time.monotonic() + _REQUEST_SECONDS
        while not all(future.done() for future in asked.values()):
            if time.monotonic() > deadline or self._stopping.wait(0):
                self._warn("Kafka does not answer")
                return False
            _wait_for(asked, _TICK)
        if not self._compare(asked):
            return False
        self.doubtful = False
        return True

    def close(self) -> None:
        """Close the Kafka client; a pending request fails.

        Explicitly, since librdkafka aborts the process if the client is garbage-collected in its own thread.
        """
        self._asked, self._client = {}, None

    def _ask(self) -> Answers:
        self._next = time.monotonic() + _EVERY_SECONDS
        with clients.translated(self._settings):
            # Kept, since destroying the client fails pending requests. A client with an empty queue is falsy.
            if self._client is None:
                self._client = clients.admin(self._settings)
            return _describe(self._client, self._ids)

    def _compare(self, answers: Answers) -> bool:
        """Return whether Kafka knows each topic by the expected id; raises TopicRecreated if the id differs."""
        known = True
        for topic, future in answers.items():
            expected = self._ids.get(topic)
            try:
                found = str(future.result().topic_id)
            except (KafkaException, TimeoutError) as error:
                self._warn(str(error), topic)
                known = False
                continue
            if expected not in (None, found):
                raise recreated(topic, expected, found)
        return known

    def _warn(self, reason: str, topic: str | None = None) -> None:
        now = time.monotonic()
        if now >= self._next_warning:
            self._next_warning = now + _WARN_SECONDS
            self._log.warning("waiting for Kafka", reason=reason, topics=[topic] if topic else sorted(self._ids))


def require_there(entry: Entry, low: int, high: int) -> Offset:
    """Return the ledger's next offset; raises TopicRecreated unless it is between `low` and `high`.

    A partition that was never read starts at its first offset, with a warning if earlier events are gone.
    """
    where = f"{entry.place.topic}/{entry.place.partition}"
    if entry.next_offset == 0:
        if low > 0:
            log.get().warning(
                "topic no longer has its first events, rows recorded only there are not read",
                partition=where,
                first_offset=low,
            )
    elif entry.next_offset > high:
        raise TopicRecreated(
            f"{where} ends at offset {high}, but the ledger is at {entry.next_offset}: "
            "the topic was deleted and recreated"
        )
    elif entry.next_offset < low:
        raise TopicRecreated(
            f"{where} begins at offset {low}, but the ledger is at {entry.next_offset}: "
            "the events in between were deleted from the topic"
        )
    return entry.next_offset


def recreated(topic: str, expected: str | None, found: str) -> TopicRecreated:
    """Return the error for a topic whose id differs from the ledger's."""
    return TopicRecreated(f"{topic} was deleted and recreated: the ledger has topic id {expected}, Kafka has {found}")


def topic_ids(settings: KafkaSettings, topics: Sequence[str]) -> dict[str, str]:
    """Return topic → the id that Kafka gave it when it was created."""
    with clients.translated(settings):
        client = clients.admin(settings)  # kept, since destroying the client fails pending requests
        described = _describe(client, topics)
        return {topic: str(clients.answer(future).topic_id) for topic, future in described.items()}


def _wait_for(answers: Answers, seconds: float) -> None:
    """Wait for one more answer, at most `seconds`."""
    for future in answers.values():
        if not future.done():
            with contextlib.suppress(TimeoutError):
                future.exception(seconds)
            return


def _describe(client: AdminClient, topics: Iterable[str]) -> Answers:
    described: Answers = client.describe_topics(TopicCollection(sorted(set(topics))), request_timeout=_REQUEST_SECONDS)
    return described
