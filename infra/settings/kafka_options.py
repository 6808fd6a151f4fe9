"""Defines for every option of librdkafka whether the user may set it, within which bounds, or only headrace.

Pure data, and checks of values against it. The names are those of librdkafka in confluent-kafka 2.16; a
test compares them with the library's own list, and docs/reference/kafka-options.md with this table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from infra.settings.mistakes import close_to
from schemas.lazy_dataclass import dataclass

Value = str | int | float | bool

BOTH, CONSUMER, PRODUCER = "*", "C", "P"
"""The clients that accept an option, by librdkafka's letters; an admin client is a producer."""


@dataclass(frozen=True)
class Text:
    """Takes any text."""

    def __str__(self) -> str:
        return "text"

    def takes(self, value: Value) -> bool:
        """Return whether an option may have `value`."""
        return not isinstance(value, bool)


@dataclass(frozen=True)
class Whole:
    """Takes a whole number from `low` to `high`."""

    low: int
    high: int

    def __str__(self) -> str:
        return f"a whole number from {self.low} to {self.high}"

    def takes(self, value: Value) -> bool:
        """Return whether an option may have `value`; digits in a string count, since environment variables are
        strings."""
        if isinstance(value, bool | float):
            return False
        digits = str(value).removeprefix("-")
        return digits.isascii() and digits.isdigit() and self.low <= int(value) <= self.high


@dataclass(frozen=True)
class Flag:
    """Takes true or false."""

    def __str__(self) -> str:
        return "true or false"

    def takes(self, value: Value) -> bool:
        """Return whether an option may have `value`."""
        return str(value).lower() in {"true", "false"}


@dataclass(frozen=True)
class OneOf:
    """Takes one of some words, ignoring case."""

    words: tuple[str, ...]

    def __str__(self) -> str:
        return " or ".join(self.words) if len(self.words) < 3 else f"one of {', '.join(self.words)}"

    def takes(self, value: Value) -> bool:
        """Return whether an option may have `value`."""
        return str(value).lower() in self.words


Takes = Text | Whole | Flag | OneOf


@dataclass(frozen=True)
class Option:
    """An option that the user may set; `why` is the reason for narrower bounds than librdkafka's."""

    clients: str
    takes: Takes
    why: str = ""


_MAX: Final = 2_147_483_647
_CODECS: Final = ("none", "gzip", "snappy", "lz4", "zstd")
_TRANSACTION: Final = "a transaction of the producer lasts 60 s at most"

YOURS: Final[Mapping[str, Option]] = {
    "builtin.features": Option(BOTH, Text()),
    "message.max.bytes": Option(BOTH, Whole(1000, 1_000_000_000)),
    "message.copy.max.bytes": Option(BOTH, Whole(0, 1_000_000_000)),
    "max.in.flight.requests.per.connection": Option(
        BOTH, Whole(1, 5), "an idempotent producer keeps the order of at most 5"
    ),
    "max.in.flight": Option(BOTH, Whole(1, 5), "an idempotent producer keeps the order of at most 5"),
    "metadata.recovery.strategy": Option(BOTH, OneOf(("none", "rebootstrap"))),
    "metadata.recovery.rebootstrap.trigger.ms": Option(BOTH, Whole(0, _MAX)),
    "topic.metadata.refresh.fast.interval.ms": Option(BOTH, Whole(1, 60_000)),
    "topic.metadata.refresh.sparse": Option(BOTH, Flag()),
    "topic.metadata.propagation.max.ms": Option(BOTH, Whole(0, 3_600_000)),
    "debug": Option(BOTH, Text()),
    "socket.timeout.ms": Option(BOTH, Whole(1_000, 60_000), _TRANSACTION),
    "socket.send.buffer.bytes": Option(BOTH, Whole(0, 100_000_000)),
    "socket.receive.buffer.bytes": Option(BOTH, Whole(0, 100_000_000)),
    "socket.keepalive.enable": Option(BOTH, Flag()),
    "socket.nagle.disable": Option(BOTH, Flag()),
    "socket.max.fails": Option(BOTH, Whole(0, 1_000_000)),
    "broker.address.ttl": Option(BOTH, Whole(0, 86_400_000)),
    "broker.address.family": Option(BOTH, OneOf(("any", "v4", "v6"))),
    "socket.connection.setup.timeout.ms": Option(BOTH, Whole(1000, _MAX)),
    "connections.max.idle.ms": Option(BOTH, Whole(0, _MAX)),
    "reconnect.backoff.ms": Option(BOTH, Whole(0, 3_600_000)),
    "reconnect.backoff.max.ms": Option(BOTH, Whole(0, 3_600_000)),
    "log_level": Option(BOTH, Whole(0, 7)),
    "log.thread.name": Option(BOTH, Flag()),
    "enable.random.seed": Option(BOTH, Flag()),
    "log.connection.close": Option(BOTH, Flag()),
    "api.version.request.timeout.ms": Option(BOTH, Whole(1, 300_000)),
    "security.protocol": Option(BOTH, OneOf(("plaintext", "ssl", "sasl_plaintext", "sasl_ssl"))),
    "ssl.cipher.suites": Option(BOTH, Text()),
    "ssl.curves.list": Option(BOTH, Text()),
    "ssl.sigalgs.list": Option(BOTH, Text()),
    "ssl.key.location": Option(BOTH, Text()),
    "ssl.key.password": Option(BOTH, Text()),
    "ssl.key.pem": Option(BOTH, Text()),
    "ssl.certificate.location": Option(BOTH, Text()),
    "ssl.certificate.pem": Option(BOTH, Text()),
    "ssl.ca.location": Option(BOTH, Text()),
    "https.ca.location": Option(BOTH, Text()),
    "https.ca.pem": Option(BOTH, Text()),
    "ssl.ca.pem": Option(BOTH, Text()),
    "ssl.ca.certificate.stores": Option(BOTH, Text()),
    "ssl.crl.location": Option(BOTH, Text()),
    "ssl.keystore.location": Option(BOTH, Text()),
    "ssl.keystore.password": Option(BOTH, Text()),
    "ssl.providers": Option(BOTH, Text()),
    "ssl.engine.location": Option(BOTH, Text()),
    "ssl.engine.id": Option(BOTH, Text()),
    "enable.ssl.certificate.verification": Option(BOTH, Flag()),
    "ssl.endpoint.identification.algorithm": Option(BOTH, OneOf(("none", "https"))),
    "sasl.mechanisms": Option(BOTH, Text()),
    "sasl.mechanism": Option(BOTH, Text()),
    "sasl.kerberos.service.name": Option(BOTH, Text()),
    "sasl.kerberos.principal": Option(BOTH, Text()),
    "sasl.kerberos.kinit.cmd": Option(BOTH, Text()),
    "sasl.kerberos.keytab": Option(BOTH, Text()),
    "sasl.kerberos.min.time.before.relogin": Option(BOTH, Whole(0, 86_400_000)),
    "sasl.username": Option(BOTH, Text()),
    "sasl.password": Option(BOTH, Text()),
    "sasl.oauthbearer.config": Option(BOTH, Text()),
    "enable.sasl.oauthbearer.unsecure.jwt": Option(BOTH, Flag()),
    "sasl.oauthbearer.method": Option(BOTH, OneOf(("default", "oidc"))),
    "sasl.oauthbearer.client.id": Option(BOTH, Text()),
    "sasl.oauthbearer.client.credentials.client.id": Option(BOTH, Text()),
    "sasl.oauthbearer.client.credentials.client.secret": Option(BOTH, Text()),
    "sasl.oauthbearer.client.secret": Option(BOTH, Text()),
    "sasl.oauthbearer.scope": Option(BOTH, Text()),
    "sasl.oauthbearer.extensions": Option(BOTH, Text()),
    "sasl.oauthbearer.token.endpoint.url": Option(BOTH, Text()),
    "sasl.oauthbearer.sub.claim.name": Option(BOTH, Text()),
    "sasl.oauthbearer.grant.type": Option(
        BOTH, OneOf(("client_credentials", "urn:ietf:params:oauth:grant-type:jwt-bearer"))
    ),
    "sasl.oauthbearer.assertion.algorithm": Option(BOTH, OneOf(("rs256", "es256"))),
    "sasl.oauthbearer.assertion.private.key.file": Option(BOTH, Text()),
    "sasl.oauthbearer.assertion.private.key.passphrase": Option(BOTH, Text()),
    "sasl.oauthbearer.assertion.private.key.pem": Option(BOTH, Text()),
    "sasl.oauthbearer.assertion.file": Option(BOTH, Text()),
    "sasl.oauthbearer.assertion.claim.aud": Option(BOTH, Text()),
    "sasl.oauthbearer.assertion.claim.exp.seconds": Option(BOTH, Whole(1, _MAX)),
    "sasl.oauthbearer.assertion.claim.iss": Option(BOTH, Text()),
    "sasl.oauthbearer.assertion.claim.jti.include": Option(BOTH, Flag()),
    "sasl.oauthbearer.assertion.claim.nbf.seconds": Option(BOTH, Whole(0, _MAX)),
    "sasl.oauthbearer.assertion.claim.sub": Option(BOTH, Text()),
    "sasl.oauthbearer.assertion.jwt.template.file": Option(BOTH, Text()),
    "sasl.oauthbearer.metadata.authentication.type": Option(BOTH, OneOf(("none", "azure_imds", "aws_iam"))),
    "plugin.library.paths": Option(BOTH, Text()),
    "coordinator.query.interval.ms": Option(CONSUMER, Whole(1, 3_600_000)),
    "queued.min.messages": Option(CONSUMER, Whole(1, 10_000_000)),
    "queued.max.messages.kbytes": Option(CONSUMER, Whole(1, 2_097_151)),
    "fetch.wait.max.ms": Option(CONSUMER, Whole(0, 10_000), "the end of a partition is reported only after this wait"),
    "fetch.queue.backoff.ms": Option(CONSUMER, Whole(0, 300_000)),
    "fetch.message.max.bytes": Option(CONSUMER, Whole(1, 1_000_000_000)),
    "max.partition.fetch.bytes": Option(CONSUMER, Whole(1, 1_000_000_000)),
    "fetch.max.bytes": Option(CONSUMER, Whole(0, 1_000_000_000), "a response with one more record must fit"),
    "fetch.min.bytes": Option(CONSUMER, Whole(0, _MAX)),
    "fetch.error.backoff.ms": Option(CONSUMER, Whole(0, 300_000)),
    "check.crcs": Option(CONSUMER, Flag()),
    "client.rack": Option(BOTH, Text()),
    "queue.buffering.max.messages": Option(
        PRODUCER, Whole(1_000, 10_000_000), "it bounds memory, and lower values stall the producer"
    ),
    "queue.buffering.max.kbytes": Option(
        PRODUCER, Whole(1_024, 2_097_151), "it bounds memory, and lower values stall the producer"
    ),
    "queue.buffering.max.ms": Option(PRODUCER, Whole(0, 10_000), "events must arrive soon"),
    "linger.ms": Option(PRODUCER, Whole(0, 10_000), "events must arrive soon"),
    "message.send.max.retries": Option(PRODUCER, Whole(1, _MAX), "an idempotent producer has to retry"),
    "retries": Option(PRODUCER, Whole(1, _MAX), "an idempotent producer has to retry"),
    "retry.backoff.ms": Option(BOTH, Whole(1, 300_000)),
    "retry.backoff.max.ms": Option(BOTH, Whole(1, 300_000)),
    "queue.buffering.backpressure.threshold": Option(PRODUCER, Whole(1, 1_000_000)),
    "compression.codec": Option(PRODUCER, OneOf(_CODECS)),
    "compression.type": Option(PRODUCER, OneOf(_CODECS)),
    "batch.num.messages": Option(PRODUCER, Whole(1, 1_000_000)),
    "batch.size": Option(PRODUCER, Whole(1, _MAX)),
    "sticky.partitioning.linger.ms": Option(PRODUCER, Whole(0, 900_000)),
    "client.dns.lookup": Option(BOTH, OneOf(("use_all_dns_ips", "resolve_canonical_bootstrap_servers_only"))),
    "enable.metrics.push": Option(BOTH, Flag()),
    "request.required.acks": Option(PRODUCER, OneOf(("all", "-1")), "a record on fewer replicas may be lost"),
    "acks": Option(PRODUCER, OneOf(("all", "-1")), "a record on fewer replicas may be lost"),
    "request.timeout.ms": Option(PRODUCER, Whole(1, 900_000)),
    "message.timeout.ms": Option(PRODUCER, Whole(1_000, 60_000), _TRANSACTION),
    "delivery.timeout.ms": Option(PRODUCER, Whole(1_000, 60_000), _TRANSACTION),
    "compression.level": Option(PRODUCER, Whole(-1, 12)),
}

_API: Final = "it is an object or a callback, not a value"
_IGNORED: Final = "librdkafka ignores it, or soon will; leave it out"
_LEDGER: Final = "offsets are in the ledger, committed with the effects; Kafka's only follow"
_MEMBERSHIP: Final = "it decides when another consumer takes over"
_METADATA: Final = "headrace detects new partitions and recreated topics by it"
_SHARE: Final = "it is for share groups, which headrace does not use"
_ORDER: Final = "events of a row must arrive in commit order"

OURS: Final[Mapping[str, str]] = {
    "bootstrap.servers": "use bootstrap_servers under [kafka]",
    "metadata.broker.list": "use bootstrap_servers under [kafka]",
    "client.id": "it names consumers host:pid in status and errors; set quotas by user",
    "group.id": "each migration has its own group, <prefix>.<migration>: a shared group would share partitions",
    "group.instance.id": "two consumers with one id fence each other, and one that left still counts as a member",
    "group.protocol": "headrace's rebalances are built for the classic protocol",
    "group.protocol.type": "headrace's rebalances are built for the classic protocol",
    "group.remote.assignor": "headrace's rebalances are built for the classic protocol",
    "partition.assignment.strategy": "cooperative-sticky is used, so that a rebalance takes away only what moves",
    "session.timeout.ms": _MEMBERSHIP,
    "heartbeat.interval.ms": _MEMBERSHIP,
    "max.poll.interval.ms": _MEMBERSHIP,
    "enable.auto.commit": _LEDGER,
    "auto.commit.enable": _LEDGER,
    "auto.commit.interval.ms": _LEDGER,
    "enable.auto.offset.store": _LEDGER,
    "auto.offset.reset": "if the ledger's offset is gone, events are lost: an error, never a reset",
    "isolation.level": "aborted transactions must not be read: read_committed",
    "enable.partition.eof": "the end of a partition is how headrace knows that it has caught up",
    "receive.message.max.bytes": "it follows from message.max.bytes and fetch.max.bytes",
    "transactional.id": "each source has its own, which fences an earlier producer of the same source",
    "transaction.timeout.ms": "readers wait this long for a producer that died: 60 s",
    "enable.idempotence": "without it a retry writes an event twice, or out of order",
    "enable.gapless.guarantee": _ORDER,
    "queuing.strategy": _ORDER,
    "partitioner": "all producers must agree on a key's partition: murmur2_random, as in Java",
    "delivery.report.only.error": "a dead letter is recorded once its delivery is reported",
    "allow.auto.create.topics": "headrace creates topics with their settings, and waits for a missing one",
    "topic.blacklist": "headrace would wait forever for a hidden topic",
    "topic.metadata.refresh.interval.ms": _METADATA,
    "metadata.max.age.ms": _METADATA,
    "statistics.interval.ms": "headrace has its own metrics and discards librdkafka's",
    "internal.termination.signal": "headrace handles signals itself, to stop cleanly",
    "log.queue": "librdkafka's lines go straight to headrace's log",
    "max.poll.records": _SHARE,
    "share.acknowledgement.mode": _SHARE,
    **dict.fromkeys(
        (
            *("error_cb", "throttle_cb", "stats_cb", "log_cb", "background_event_cb", "socket_cb", "connect_cb"),
            *("closesocket_cb", "open_cb", "resolve_cb", "oauthbearer_token_refresh_cb", "ssl.certificate.verify_cb"),
            *("consume_cb", "rebalance_cb", "offset_commit_cb", "dr_cb", "dr_msg_cb", "partitioner_cb"),
            *("oauth_cb", "on_commit", "on_delivery", "logger", "default.topic.config"),
            *("msg_order_cmp", "opaque", "default_topic_conf", "interceptors", "enabled_events", "ssl_key"),
            *("ssl_certificate", "ssl_ca", "ssl_engine_callback_data", "consume.callback.max.messages"),
        ),
        _API,
    ),
    **dict.fromkeys(
        (
            *("socket.blocking.max.ms", "topic.metadata.refresh.fast.cnt", "reconnect.backoff.jitter.ms"),
            *("api.version.request", "api.version.fallback.ms", "broker.version.fallback", "produce.offset.report"),
            *("offset.store.method", "offset.store.path", "offset.store.sync.interval.ms"),
        ),
        _IGNORED,
    ),
}

_ALIASES: Final[Mapping[str, str]] = {
    "max.in.flight": "max.in.flight.requests.per.connection",
    "sasl.mechanism": "sasl.mechanisms",
    "sasl.oauthbearer.client.credentials.client.id": "sasl.oauthbearer.client.id",
    "sasl.oauthbearer.client.credentials.client.secret": "sasl.oauthbearer.client.secret",
    "max.partition.fetch.bytes": "fetch.message.max.bytes",
    "linger.ms": "queue.buffering.max.ms",
    "retries": "message.send.max.retries",
    "compression.type": "compression.codec",
    "acks": "request.required.acks",
    "delivery.timeout.ms": "message.timeout.ms",
}

_NAMES: Final = {name.replace("_", "."): name for name in (*YOURS, *OURS)}


_SECRET: Final = re.compile(r"password|secret|passphrase|key\.pem|oauthbearer\.config|kinit\.cmd")


def is_secret(name: str) -> bool:
    """Return whether an option may contain a secret, so that its value is never shown."""
    return _SECRET.search(name) is not None


def named(name: str) -> str:
    """Return librdkafka's name of an option: in an environment variable each dot is `_`."""
    dotted = name.replace("_", ".")
    return _NAMES.get(dotted, dotted)


def primary(name: str) -> str:
    """Return the primary name of an option, of which `name` may be an alias."""
    return _ALIASES.get(name, name)


def checked(options: Mapping[str, Value]) -> dict[str, Value]:
    """Return `options` by librdkafka's names; raises ValidationError with the wrong ones, never with a value."""
    found: dict[str, Value] = {}
    names: dict[str, str] = {}
    mistakes: list[InitErrorDetails] = []
    # The environment's come last, to override the same option in the file.
    for key, value in sorted(options.items(), key=lambda item: item[0] != named(item[0])):
        name = named(key)
        said = _mistake(name, value)
        other = names.setdefault(primary(name), name)
        if said is None and other != name:
            said = f"is another name of {other}: set one of them"
        if said is None:
            found[name] = value
        else:
            why = PydanticCustomError("kafka_option", "{said}", {"said": said})
            mistakes.append({"type": why, "loc": (key,), "input": None})
    if mistakes:
        raise ValidationError.from_exception_data("options", mistakes, hide_input=True)
    return found


def given_to(client: str, options: Mapping[str, Value]) -> dict[str, Value]:
    """Return the `options` that the user may set and that a `client` accepts, by their primary names."""
    return {
        primary(name): value
        for name, value in options.items()
        if name in YOURS and YOURS[name].clients in (BOTH, client)
    }


def _mistake(name: str, value: Value) -> str | None:
    """Return what is wrong with setting `name` to `value`, without the value; None if nothing is."""
    if name in OURS:
        return f"headrace sets it itself: {OURS[name]}"
    if name not in YOURS:
        return f"librdkafka has no such option{close_to(name, YOURS)}"
    option = YOURS[name]
    if option.takes.takes(value):
        return None
    return f"must be {option.takes}" + (f": {option.why}" if option.why else "")
