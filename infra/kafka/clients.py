"""Clients of Kafka, and the one place where librdkafka's errors become ours."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from infra.kafka import denials
from infra.kafka.kafka_errors import MEANINGS, SILENT, UNKNOWN, Course
from infra.service import log
from infra.settings.kafka_options import CONSUMER, PRODUCER, given_to, primary
from infra.settings.model import KafkaSettings
from schemas.errors import BrokerUnavailable, Fenced, HeadraceError, Interrupted, PreflightFailed, SettingsError

RECORD_BYTES: Final = 104_000_000
"""The largest record unless the settings say otherwise: a broker takes no request of more than 100 MiB by default."""

READERS: Final = "headrace-readers"
"""The group of all that read without being a consumer of a migration: none joins it, and nothing is committed in it.

A client without a group is none that confluent-kafka makes; it asks for the group's coordinator, which takes Describe.
"""

_BESIDE: Final = 64 << 20
"""What a broker may answer with beside one such record: a fetch asks for 50 MiB."""

_FAILOVER: Final[Mapping[str, Any]] = {
    "reconnect.backoff.max.ms": 500,
    "topic.metadata.refresh.interval.ms": 2_000,
    "api.version.request.timeout.ms": 3_000,
    "socket.connection.setup.timeout.ms": 5_000,
}
"""How a client soon learns which brokers are there, and who leads: within a moment of the cluster itself.

librdkafka asks for the coordinator of a transaction only when the connection to the last one changes its state: between
two attempts to connect to a dead broker that may be 10 s, and where a broker hangs the attempt itself lasts as long. An
administrative request waits for the broker that it was to go to until the metadata have another one: 5 minutes.
"""

_HANGS: Final[Mapping[str, Any]] = {"socket.timeout.ms": 6_000}
"""What a transactional producer has beside that: a broker that hangs keeps a request 60 s, or a transaction's life."""

COORDINATOR_STARTING: Final = frozenset(
    {
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.NOT_COORDINATOR,
    }
)
"""What is said of a group by brokers that have just started, or never had one: asked a moment later they know it."""

T = TypeVar("T")
_TICK: Final = 0.1
_LEAVE_SECONDS: Final = 5.0
_NONE: Final[Mapping[str, Any]] = {}

_INVALID: Final = {KafkaError._INVALID_ARG, KafkaError._CONFLICT}
_QUOTED_VALUE: Final = re.compile(r'value "[^"]*"')


def producer(settings: KafkaSettings, *, defaults: Mapping[str, Any] = _NONE, **options: Any) -> Producer:
    """Return a producer; `options` are librdkafka's with `_` for `.`, and win over those of the settings.

    Those of the settings win over `defaults`.
    """
    usual = {
        "enable.idempotence": True,
        "compression.type": "lz4",
        "linger.ms": 5,
        "message.max.bytes": RECORD_BYTES,
        "partitioner": "murmur2_random",  # the Java client's, so that every producer agrees on a key's partition
        **(_HANGS if "transactional_id" in options else {}),
    }
    with translated(settings):
        return Producer(_configuration(settings, PRODUCER, {**_primary(usual), **_primary(defaults)}, options))


def consumer(settings: KafkaSettings, group: str, *, defaults: Mapping[str, Any] = _NONE, **options: Any) -> Consumer:
    """Return a read-committed consumer of `group`, which commits nothing and starts at the beginning.

    `defaults` and `options` are as for `producer`.
    """
    usual = {
        "group.id": group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",
        "isolation.level": "read_committed",
        "enable.partition.eof": False,
        "receive.message.max.bytes": max(record_bytes(settings), _fetch_bytes(settings)) + _BESIDE,
    }
    with translated(settings):
        return Consumer(_configuration(settings, CONSUMER, {**_primary(usual), **_primary(defaults)}, options))


@contextmanager
def reading(settings: KafkaSettings, **options: Any) -> Iterator[Consumer]:
    """Give a consumer as `consumer` does, of READERS, with what it raises inside translated; it is left at the end."""
    with translated(settings):
        client = consumer(settings, READERS, **options)
        try:
            yield client
        finally:
            leave(client, _LEAVE_SECONDS)


def leave(client: Consumer, seconds: float) -> bool:
    """Close a consumer; return whether that was done within `seconds`, else it is left to a thread of its own.

    librdkafka's destructor can wait for itself without end (its issues 4514 and 5476), and where it does no signal
    reaches the caller. With no broker at hand it also waits for one to say goodbye to.
    """
    closing = threading.Thread(target=client.close, name="leave Kafka", daemon=True)
    closing.start()
    closing.join(seconds)
    return not closing.is_alive()


def record_bytes(settings: KafkaSettings) -> int:
    """Return how many bytes a record may have, key and value together, before it is compressed."""
    return int(settings.options.get("message.max.bytes", RECORD_BYTES))


def _fetch_bytes(settings: KafkaSettings) -> int:
    return int(settings.options.get("fetch.max.bytes", 0))


class _Admin:
    """This process's admin client, for the settings that were last asked for.

    One, since each has connections and threads of its own, and to make one takes longer than most questions: a start of
    a producer asks thirteen.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._client: AdminClient | None = None
        self._of: tuple[int, KafkaSettings] | None = None

    def client(self, settings: KafkaSettings) -> AdminClient:
        asked = os.getpid(), settings
        with self._lock:
            before = self._client  # let go of outside of the lock: librdkafka's destructor may take its time
            if before is not None and self._of == asked:
                before.poll(0)  # its log lines wait for that, and the renewal of a token
                return before
            client = self._client = AdminClient(_configuration(settings, PRODUCER, {}, {}))
            self._of = asked
        return client


_ADMIN: Final = _Admin()


def admin(settings: KafkaSettings) -> AdminClient:
    """Return the admin client of this process; to be kept while a request is under way, which else fails."""
    with translated(settings):
        return _ADMIN.client(settings)


def ensure_reachable(settings: KafkaSettings, timeout: float = 10.0) -> None:
    """Raise BrokerUnavailable within `timeout` seconds unless a broker answers."""
    with translated(settings):
        admin(settings).list_topics(timeout=timeout)


def answer(future: Future[Any], seconds: float = 20.0) -> Any:
    """Return what a request of an admin client brought, within `translated`, which tells why it brought nothing.

    The client itself keeps to its request's timeout, mostly.
    """
    return future.result(seconds)


def ask(question: Callable[[], T], stopping: threading.Event) -> T:
    """Return the answer to a question that may take a while; raises what it raises, and Interrupted when stopping.

    It is asked in a thread that is left alone then: a call into librdkafka cannot be interrupted.
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
            # A question's own timeout looks the same.
            if answered.done():
                return answered.result()
            if stopping.is_set():
                raise Interrupted("stopped while Kafka did not answer") from None


@contextmanager
def translated(settings: KafkaSettings) -> Iterator[None]:
    """Turn what confluent-kafka raises inside into headrace's errors, naming the broker."""
    try:
        yield
    except KafkaException as error:
        raise translate(error.args[0], settings) from error
    except TimeoutError as error:
        # An answer of the admin client that did not come.
        raise _unreachable("nothing came in time", settings) from error


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
        return _unreachable(text, settings)
    if course is Course.WAITED:
        return BrokerUnavailable(f"{place} cannot do it now: {text} ({why})")
    return HeadraceError(f"{place}: {text}", remedy=why)


def _meaning(error: KafkaError) -> tuple[Course, str]:
    """Return what is done at an error, and why; one that aborted a transaction of the producer is worth another."""
    meaning = MEANINGS.get(error.code(), UNKNOWN)
    redone = meaning.course is Course.REDONE and (error.retriable() or error.txn_requires_abort())
    return Course.WAITED if redone else meaning.course, meaning.why


def _unreachable(text: str, settings: KafkaSettings) -> BrokerUnavailable:
    return denials.unreachable(text, settings, lambda: _configuration(settings, PRODUCER, {}, {}))


def _configuration(
    settings: KafkaSettings, client: str, defaults: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a client is built with: the settings win over `defaults`, `options` over the settings."""
    return {
        "bootstrap.servers": settings.bootstrap_servers,
        "client.id": "headrace",
        "error_cb": _log_client_error,
        **_FAILOVER,
        **defaults,
        **given_to(client, settings.options),
        **_primary(_dotted(options)),
        # librdkafka prints to standard error by itself; its lines belong into the log.
        "logger": _LIBRDKAFKA,
    }


def _dotted(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name if callable(value) else name.replace("_", "."): value for name, value in options.items()}


def _primary(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return `options` by the names that those of the settings have, so that none is there twice."""
    return {primary(name): value for name, value in options.items()}


def _log_client_error(error: KafkaError) -> None:
    log.get().debug("kafka client", code=error.name(), detail=error.str())


class _ForwardToLog:
    """librdkafka's logger interface: it calls `log(level, format, *args)`."""

    def log(self, level: int, template: str, *args: object) -> None:
        log.get().debug("librdkafka", level=level, detail=template % args)


_LIBRDKAFKA = _ForwardToLog()
