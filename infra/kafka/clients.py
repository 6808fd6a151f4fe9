"""Creates Kafka clients, and translates librdkafka's errors into headrace's."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from infra.kafka import denials, oauth_tokens
from infra.kafka.kafka_errors import MEANINGS, SILENT, UNKNOWN, Course
from infra.service import log
from infra.settings.kafka_options import CONSUMER, PRODUCER, given_to, primary
from infra.settings.model import KafkaSettings
from schemas.errors import BrokerUnavailable, Fenced, HeadraceError, Interrupted, PreflightFailed, SettingsError

RECORD_BYTES: Final = 104_000_000
"""The largest record by default: a broker accepts requests of up to 100 MiB by default."""

READERS: Final = "headrace-readers"
"""The group of readers that are not consumers of a migration: none joins it or commits offsets in it.

confluent-kafka requires a group; the client looks up its coordinator, which needs Describe.
"""

_FETCH_MARGIN: Final = 64 << 20
"""The size of a fetch response beyond one such record: a fetch asks for 50 MiB."""

_FAILOVER: Final[Mapping[str, Any]] = {
    "reconnect.backoff.max.ms": 500,
    "topic.metadata.refresh.interval.ms": 2_000,
    "api.version.request.timeout.ms": 3_000,
    "socket.connection.setup.timeout.ms": 5_000,
}
"""Settings by which a client soon learns of a change of brokers or leaders.

librdkafka looks up the coordinator of a transaction only when the connection to the last one changes its state: that
may take 10 s between two attempts to connect to a dead broker, and as long for an attempt if a broker hangs. An
administrative request waits for its broker until the metadata changes: 5 minutes by default.
"""

_HANGS: Final[Mapping[str, Any]] = {"socket.timeout.ms": 6_000}
"""Further settings of a transactional producer: a hung broker keeps a request for 60 s, a whole transaction."""

COORDINATOR_STARTING: Final = frozenset(
    {
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.NOT_COORDINATOR,
    }
)
"""Temporary errors about a group from brokers that have just started or never had one."""

T = TypeVar("T")
_TICK: Final = 0.1
_LEAVE_SECONDS: Final = 5.0
_ANSWER_SECONDS: Final = 30.0
IDLE_READERS: Final = 4
"""Readers that stay connected for the next use."""
IDLE_SECONDS: Final = 60.0
"""How long they do, if there is a next use of any."""
_NONE: Final[Mapping[str, Any]] = {}

_INVALID: Final = {KafkaError._INVALID_ARG, KafkaError._CONFLICT}
_QUOTED_VALUE: Final = re.compile(r'value "[^"]*"')


def producer(settings: KafkaSettings, *, defaults: Mapping[str, Any] = _NONE, **options: Any) -> Producer:
    """Return a producer; `options` are librdkafka's with `_` for `.`, and override those of the settings.

    Those of the settings override `defaults`.
    """
    usual = {
        "enable.idempotence": True,
        "compression.type": "lz4",
        "linger.ms": 5,
        "message.max.bytes": RECORD_BYTES,
        "partitioner": "murmur2_random",  # the Java client's default, so that all producers agree on a key's partition
        **(_HANGS if "transactional_id" in options else {}),
    }
    with translated(settings):
        return Producer(_configuration(settings, PRODUCER, {**_primary(usual), **_primary(defaults)}, options))


def consumer(settings: KafkaSettings, group: str, *, defaults: Mapping[str, Any] = _NONE, **options: Any) -> Consumer:
    """Return a read-committed consumer of `group`, which commits no offsets and starts at the beginning.

    `defaults` and `options` are as for `producer`.
    """
    usual = {
        "group.id": group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",
        "isolation.level": "read_committed",
        "enable.partition.eof": False,
        # By default fetching pauses for a second whenever the queue is full, which it often is.
        "fetch.queue.backoff.ms": 5,
        "receive.message.max.bytes": max(record_bytes(settings), _fetch_bytes(settings)) + _FETCH_MARGIN,
    }
    with translated(settings):
        return Consumer(_configuration(settings, CONSUMER, {**_primary(usual), **_primary(defaults)}, options))


@contextmanager
def reading(settings: KafkaSettings, **options: Any) -> Iterator[Consumer]:
    """Provide a consumer of the group READERS without an assignment; errors inside are translated.

    A TimeoutError inside means that the brokers stopped answering; its text says in which work.
    """
    with translated(settings):
        client = _IDLE.take(settings, options) or consumer(settings, READERS, **options)
        try:
            yield client
            client.unassign()
        except BaseException:
            leave(client, _LEAVE_SECONDS)
            raise
        _IDLE.keep(settings, options, client)


def assign(client: Consumer, places: Sequence[TopicPartition]) -> None:
    """Assign places to a reader, and ask for their topics: one that it does not know yet it would look up later."""
    for topic in sorted({place.topic for place in places}):
        client.list_topics(topic, timeout=_ANSWER_SECONDS)
    client.assign(list(places))


class _IdleReaders:
    """This process's idle readers: connecting another one takes longer than most reads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[tuple[float, tuple[int, KafkaSettings, Mapping[str, Any]], Consumer]] = []

    def take(self, settings: KafkaSettings, options: Mapping[str, Any]) -> Consumer | None:
        asked = os.getpid(), settings, options
        self._close_old()
        with self._lock:
            place = next((place for place, (_, of, _) in enumerate(self._idle) if of == asked), None)
            client = self._idle.pop(place)[2] if place is not None else None
        if client is not None:
            client.poll(0)  # serves its log lines and the renewal of a token
        return client

    def keep(self, settings: KafkaSettings, options: Mapping[str, Any], client: Consumer) -> None:
        with self._lock:
            self._idle.append((time.monotonic(), (os.getpid(), settings, options), client))
        self._close_old()

    def _close_old(self) -> None:
        """Close readers that nothing took for long: without its brokers one tries to connect, and logs, for ever."""
        now = time.monotonic()
        with self._lock:
            kept = [each for each in self._idle if now - each[0] < IDLE_SECONDS][-IDLE_READERS:]
            closed = [each for each in self._idle if each not in kept]
            self._idle = kept
        for _, _, client in closed:
            leave(client, 0)


_IDLE: Final = _IdleReaders()


def leave(client: Consumer, seconds: float) -> bool:
    """Close a consumer; return whether that took at most `seconds`, else a thread continues it.

    librdkafka's destructor can deadlock (its issues 4514 and 5476), and no signal reaches the caller then. Without a
    reachable broker it also waits for one to leave the group.
    """
    closing = threading.Thread(target=client.close, name="leave Kafka", daemon=True)
    closing.start()
    closing.join(seconds)
    return not closing.is_alive()


def record_bytes(settings: KafkaSettings) -> int:
    """Return the maximum size of a record, key and value together, before compression."""
    return int(settings.options.get("message.max.bytes", RECORD_BYTES))


def _fetch_bytes(settings: KafkaSettings) -> int:
    return int(settings.options.get("fetch.max.bytes", 0))


class _Admin:
    """This process's admin client, for the settings last used.

    A single one, since each has its own connections and threads, and creating it takes longer than most requests: the
    start of a producer sends thirteen.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._client: AdminClient | None = None
        self._of: tuple[int, KafkaSettings] | None = None

    def client(self, settings: KafkaSettings) -> AdminClient:
        asked = os.getpid(), settings
        with self._lock:
            before = self._client  # released outside the lock: librdkafka's destructor may be slow
            if before is not None and self._of == asked:
                before.poll(0)  # serves its log lines and the renewal of a token
                return before
            client = self._client = AdminClient(_configuration(settings, PRODUCER, {}, {}))
            self._of = asked
        return client


_ADMIN: Final = _Admin()


def admin(settings: KafkaSettings) -> AdminClient:
    """Return the admin client of this process; keep a reference during a request, which fails otherwise."""
    with translated(settings):
        return _ADMIN.client(settings)


def ensure_reachable(settings: KafkaSettings, timeout: float = 10.0) -> None:
    """Raise BrokerUnavailable within `timeout` seconds unless a broker answers."""
    with translated(settings):
        admin(settings).list_topics(timeout=timeout)


def require_broker(settings: KafkaSettings, timeout: float = 2.0) -> None:
    """Raise BrokerUnavailable within a few seconds unless a broker answers; for calls every second.

    Asks about one topic, which exists and is no producer's: the list of all may be long.
    """
    with translated(settings):
        admin(settings).list_topics("__consumer_offsets", timeout=timeout)


def answer(future: Future[Any], seconds: float = 20.0) -> Any:
    """Return the result of an admin client's request; call it within `translated`.

    The client mostly keeps its request's timeout itself.
    """
    return future.result(seconds)


def ask(question: Callable[[], T], stopping: threading.Event) -> T:
    """Return the result of a slow `question`; raises its errors, and Interrupted when stopping.

    It runs in a thread that is then abandoned: a call into librdkafka cannot be interrupted.
    """
    answered: Future[T] = Future()

    def run() -> None:
        try:
            answered.set_result(question())
        except BaseException as error:
            answered.set_exception(error)

    threading.Thread(target=run, name="ask Kafka", daemon=True).start()
    while True:
        try:
            return answered.result(_TICK)
        except TimeoutError:
            # The question itself may have raised a TimeoutError.
            if answered.done():
                return answered.result()
            if stopping.is_set():
                raise Interrupted("stopped while waiting for Kafka") from None


@contextmanager
def translated(settings: KafkaSettings) -> Iterator[None]:
    """Translate confluent-kafka's errors, and a TimeoutError, into headrace's, naming the broker and the reason."""
    try:
        yield
    except KafkaException as error:
        raise translate(error.args[0], settings) from error
    except TimeoutError as error:
        # A future of the admin client, which says nothing more, or a reader's own.
        raise unreachable(str(error) or "the request timed out", settings) from error


def translate(error: KafkaError, settings: KafkaSettings) -> HeadraceError:
    """Return headrace's error for librdkafka's, by the table of infra/kafka/kafka_errors.py."""
    code, text = error.code(), " ".join(error.str().split())
    place = f"Kafka at {settings.bootstrap_servers}"
    course, why = _meaning(error)
    if code in _INVALID:
        # librdkafka quotes the value, which may be a secret.
        return SettingsError(
            f"kafka.options: {_QUOTED_VALUE.sub('value', text)}", remedy="correct or remove it in the settings"
        )
    if course is Course.FENCED:
        return Fenced(f"this process was fenced: {text}")
    if course is Course.REFUSED:
        denied = code in denials.DENIALS
        return denials.denied(error, settings) if denied else PreflightFailed(f"{place}: {text}", remedy=why)
    if code in SILENT:
        return unreachable(text, settings)
    if course is Course.WAITED:
        return BrokerUnavailable(f"{place} cannot serve the request now: {text} ({why})")
    return HeadraceError(f"{place}: {text}", remedy=why)


def _meaning(error: KafkaError) -> tuple[Course, str]:
    """Return the reaction to an error, and why; if it aborted a transaction of the producer, that is retried."""
    meaning = MEANINGS.get(error.code(), UNKNOWN)
    redone = meaning.course is Course.REDONE and (error.retriable() or error.txn_requires_abort())
    return Course.WAITED if redone else meaning.course, meaning.why


def unreachable(text: str, settings: KafkaSettings) -> BrokerUnavailable:
    """Return the error for brokers that do not answer, with librdkafka's own reason if a new connection fails."""
    return denials.unreachable(text, settings, lambda: _configuration(settings, PRODUCER, {}, {}))


def _configuration(
    settings: KafkaSettings, client: str, defaults: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a client's configuration: the settings override `defaults`, `options` override the settings."""
    return {
        "bootstrap.servers": settings.bootstrap_servers,
        "client.id": "headrace",
        "error_cb": _log_client_error,
        **_FAILOVER,
        **defaults,
        **given_to(client, settings.options),
        **_primary(_dotted(options)),
        **({"oauth_cb": oauth_tokens.callback(command)} if (command := settings.oauth_token_command) else {}),
        # librdkafka prints to standard error by default; its lines belong in the log.
        "logger": _LIBRDKAFKA,
    }


def _dotted(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name if callable(value) else name.replace("_", "."): value for name, value in options.items()}


def _primary(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return `options` by their primary names, as in the settings, so that none appears twice."""
    return {primary(name): value for name, value in options.items()}


def _log_client_error(error: KafkaError) -> None:
    log.get().debug("kafka client", code=error.name(), detail=error.str())


class _ForwardToLog:
    """librdkafka's logger interface: it calls `log(level, format, *args)`."""

    def log(self, level: int, template: str, *args: object) -> None:
        log.get().debug("librdkafka", level=level, detail=template % args)


_LIBRDKAFKA = _ForwardToLog()
