"""Explains Kafka's refusals: the client's principal, denied resources, and failed logins."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from confluent_kafka import KafkaError
from confluent_kafka.admin import AdminClient

from infra.settings.model import KafkaSettings
from schemas.errors import BrokerUnavailable, PreflightFailed

DENIALS: Final[Mapping[int, str]] = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "a topic",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "a consumer group",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "the cluster",
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "a transactional id",
}
"""Kafka's error codes for a missing right, and the kind of resource."""

_LOGIN: Final = (KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED, KafkaError._SSL)
_OF_TLS: Final = re.compile(r"SSL routines|SSL alert|SSL handshake|state (APIVERSION_QUERY|SSL_HANDSHAKE|AUTH\w*)\)")
"""librdkafka's messages when a broker closes the connection of a client with the wrong protocol or an untrusted
certificate: they look like those of any closed connection."""
_SECONDS: Final = 2.0
_AGAIN_SECONDS: Final = 10.0


class AccessDenied(PreflightFailed):
    """Grant it: `headrace init --sql` prints the ACL commands, `headrace check` lists all that is missing."""


class LoginRefused(BrokerUnavailable):
    """Correct kafka.options in the settings: security.protocol, sasl.*, ssl.*; see docs/reference/security.md."""


def principal(settings: KafkaSettings) -> str:
    """Return the principal for ACLs, as far as the settings show it: Kafka reports it to no client."""
    options = settings.options
    protocol = str(options.get("security.protocol", "plaintext")).lower()
    if protocol.startswith("sasl"):
        if "sasl.username" in options:
            return f"User:{options['sasl.username']}"
        return "the principal of its token or ticket"
    for name in ("ssl.certificate.location", "ssl.keystore.location"):
        if protocol == "ssl" and name in options:
            return f"the principal of the certificate in {Path(str(options[name])).name}"
    if protocol == "ssl" and "ssl.certificate.pem" in options:
        return "the principal of its certificate"
    return "User:ANONYMOUS"


def denied(error: KafkaError, settings: KafkaSettings) -> AccessDenied:
    """Return headrace's error for a denial; `rights.named` finds the missing right."""
    text = " ".join(error.str().split())
    return AccessDenied(
        f"Kafka at {settings.bootstrap_servers} denies {principal(settings)} {DENIALS[error.code()]}: {text}"
    )


def unreachable(text: str, settings: KafkaSettings, configuration: Callable[[], dict[str, Any]]) -> BrokerUnavailable:
    """Return headrace's error for unreachable brokers, with the reason why a new connection fails, if it does.

    A failed request reports only a missing connection; librdkafka reports the reason to the client's error callback.
    """
    code, reason = _last_refusal(settings, configuration)
    place = f"Kafka at {settings.bootstrap_servers}"
    if code in _LOGIN or _OF_TLS.search(reason):
        return LoginRefused(f"{place} does not let {principal(settings)} in: {reason}")
    return BrokerUnavailable(f"{place} does not answer: {text}{f' ({reason})' if reason else ''}")


_Client = tuple[str, tuple[tuple[str, Any], ...]]

_known: dict[_Client, tuple[float, int | None, str]] = {}
_lock = threading.Lock()


def _last_refusal(settings: KafkaSettings, configuration: Callable[[], dict[str, Any]]) -> tuple[int | None, str]:
    """Return code and text of a new connection's error, or None and an empty text if it gets none in time.

    The answer is cached for ten seconds: processes that wait for Kafka ask in a loop.
    """
    client = settings.bootstrap_servers, tuple(sorted(settings.options.items()))
    with _lock:
        until, code, reason = _known.get(client, (0.0, None, ""))
        if time.monotonic() > until:
            code, reason = _connect(configuration())
            _known[client] = time.monotonic() + _AGAIN_SECONDS, code, reason
        return code, reason


def _connect(configuration: dict[str, Any]) -> tuple[int | None, str]:
    errors: list[KafkaError] = []
    failures = _Failures()
    client = AdminClient(configuration | {"error_cb": errors.append, "logger": failures})
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        client.poll(0.05)
        for error in errors:
            # "All brokers down" only follows from the errors of each.
            if error.code() != KafkaError._ALL_BROKERS_DOWN:
                return error.code(), " ".join(error.str().split())
        for line in failures.lines:  # a connection that the broker closes is only in the log
            return None, line
    return None, ""


class _Failures:
    """Receives librdkafka's log, and keeps its lines about failed connections."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, _level: int, template: str, *args: object) -> None:
        line = " ".join((template % args).split())
        if line.startswith("FAIL "):
            self.lines.append(line.rpartition("] ")[2].removeprefix("[thrd:").partition(": ")[2] or line)
