"""Whether the topics that a consumer reads are still those that its ledger is about.

A topic that was deleted and made again has the same name, and offsets from 0 on: a consumer at offset 4,000 reads on at
4,000 of the new one as soon as it has so many, and all before that would be lost without an error. A topic's id, which
Kafka gives it when it is made, and never again, tells the two apart. Kafka's clients do not compare it, so it is asked:

- before anything is applied that was fetched while nobody could have noticed: after an assignment, a pause, a seek, an
  error of Kafka's, and whenever nothing was polled for a second, as in a process that was frozen;
- every two seconds while records are polled, in the background;
- before a consumer says that it has caught up, or that its migration is complete.

The ledger keeps the id of its topic until a replay. So what was applied of a topic made again, between two of these
checks or by a consumer that was killed then, is never passed over: every check and every later start refuses.
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
_TELL_SECONDS: Final = 10.0
_TICK: Final = 0.05

Answers = Mapping[str, "Future[Any]"]


class TopicRecreated(Refused):
    """Read it from the beginning with `headrace replay`."""


class TopicIdentity:
    """Compares the ids of the topics that one consumer has partitions of with those of its ledger."""

    def __init__(self, settings: KafkaSettings, stopping: threading.Event) -> None:
        self._settings = settings
        self._stopping = stopping
        self._client: AdminClient | None = None
        self._ids: dict[str, str] = {}
        self._asked: Answers = {}
        self._next = self._next_word = 0.0
        self._log = log.get()
        self.doubtful = False
        """Whether what is polled next may be of another topic without anybody having noticed."""

    def expect(self, entries: Iterable[Entry]) -> None:
        """Compare these topics from now on, with the ids that the ledger has."""
        self._ids |= {entry.place.topic: entry.topic_id for entry in entries}
        self.doubtful = True

    def keep_only(self, topics: Iterable[str]) -> None:
        """Forget the others: no partition of them is here any more."""
        kept = set(topics)
        self._ids = {topic: expected for topic, expected in self._ids.items() if topic in kept}

    def look(self) -> None:
        """Take the answer of the last question, if it is there, and ask again when it is time; never waits.

        Raises TopicRecreated.
        """
        now = time.monotonic()
        if self._asked and all(future.done() for future in self._asked.values()):
            self._compare(self._asked)
            self._asked = {}
        elif not self._asked and self._ids and now >= self._next:
            self._asked = self._ask()

    def confirm(self) -> bool:
        """Ask, and wait for the answer; return whether each topic is the one that it was.

        What was fetched before is of that topic then. False, with a line in the log, when Kafka does not answer or
        does not know a topic, or when the consumer is stopping. Raises TopicRecreated.
        """
        if not self._ids:
            return True
        asked = self._ask()
        deadline = time.monotonic() + _REQUEST_SECONDS
        while not all(future.done() for future in asked.values()):
            if time.monotonic() > deadline or self._stopping.wait(0):
                self._tell("Kafka does not answer")
                return False
            _wait_for(asked, _TICK)
        if not self._compare(asked):
            return False
        self.doubtful = False
        return True

    def close(self) -> None:
        """Let go of Kafka; a question under way fails.

        Here, and not wherever it is collected: librdkafka aborts a process that does so in the client's own thread.
        """
        self._asked, self._client = {}, None

    def _ask(self) -> Answers:
        self._next = time.monotonic() + _EVERY_SECONDS
        with clients.translated(self._settings):
            # Kept: a client that is forgotten fails the requests under way. One with nothing queued is false.
            if self._client is None:
                self._client = clients.admin(self._settings)
            return _describe(self._client, self._ids)

    def _compare(self, answers: Answers) -> bool:
        """Return whether Kafka knows each topic by the expected id; raises TopicRecreated where it is another one."""
        known = True
        for topic, future in answers.items():
            expected = self._ids.get(topic)
            try:
                found = str(future.result().topic_id)
            except (KafkaException, TimeoutError) as error:
                self._tell(str(error), topic)
                known = False
                continue
            if expected not in (None, found):
                raise recreated(topic, expected, found)
        return known

    def _tell(self, reason: str, topic: str | None = None) -> None:
        now = time.monotonic()
        if now >= self._next_word:
            self._next_word = now + _TELL_SECONDS
            self._log.warning("waiting for Kafka", reason=reason, topics=[topic] if topic else sorted(self._ids))


def require_there(entry: Entry, low: int, high: int) -> Offset:
    """Return the offset that the ledger needs next; raises TopicRecreated unless it lies in `low` to `high`.

    The ledger of a partition that was never read begins with whatever is there, with a warning if that is not all.
    """
    where = f"{entry.place.topic}/{entry.place.partition}"
    if entry.next_offset == 0:
        if low > 0:
            log.get().warning(
                "the topic no longer has its first events: rows that only they told of are not read",
                partition=where,
                first_offset=low,
            )
    elif entry.next_offset > high:
        raise TopicRecreated(
            f"{where} ends at offset {high}, but the ledger is at {entry.next_offset}: "
            "the topic was deleted and made again"
        )
    elif entry.next_offset < low:
        raise TopicRecreated(
            f"{where} begins at offset {low}, but the ledger is at {entry.next_offset}: "
            "events between were deleted from the topic"
        )
    return entry.next_offset


def recreated(topic: str, expected: str | None, found: str) -> TopicRecreated:
    """Return the error for a topic whose id is not the ledger's."""
    return TopicRecreated(
        f"{topic} was deleted and made again: the ledger is of the topic with id {expected}, Kafka has {found}"
    )


def topic_ids(settings: KafkaSettings, topics: Sequence[str]) -> dict[str, str]:
    """Return topic → the id that Kafka gave it when it was created."""
    with clients.translated(settings):
        client = clients.admin(settings)  # kept: a client that is forgotten fails the requests under way
        described = _describe(client, topics)
        return {topic: str(clients.answer(future).topic_id) for topic, future in described.items()}


def _wait_for(answers: Answers, seconds: float) -> None:
    """Wait until one more answer is there, `seconds` at most."""
    for future in answers.values():
        if not future.done():
            with contextlib.suppress(TimeoutError):
                future.exception(seconds)
            return


def _describe(client: AdminClient, topics: Iterable[str]) -> Answers:
    described: Answers = client.describe_topics(TopicCollection(sorted(set(topics))), request_timeout=_REQUEST_SECONDS)
    return described
