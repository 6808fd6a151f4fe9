"""Tokens for SASL OAUTHBEARER that a command prints (`kafka.oauth_token_command`), such as those of MSK's IAM."""

from __future__ import annotations

import base64
import binascii
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import field
from typing import Any, Final

from infra.service import log
from infra.service.command_output import CommandFailed, output_of
from schemas.errors import HeadraceError
from schemas.lazy_dataclass import dataclass

SETTING: Final = "kafka.oauth_token_command"
_REUSED: Final = 0.5
"""The part of a token's life in which further clients get it. librdkafka asks for the next one after 0.8 of it."""

Answer = tuple[str, float, str, dict[str, str]]
"""What confluent-kafka's `oauth_cb` returns: the token, when it expires, its principal, extensions."""


@dataclass(frozen=True)
class Token:
    """A token for brokers; `expires_at` is in seconds since 1970."""

    value: str = field(repr=False)
    expires_at: float
    principal: str = ""


class TokenUnreadable(CommandFailed):
    """It has to print {"token": "…", "expires_at": seconds since 1970 (or "lifetime": seconds)}, or a JWT with exp."""


def parsed(text: str, now: float, named: str = SETTING) -> Token:
    """Return the token in a command's output; raises TokenUnreadable, without the output, which is a secret.

    The output is a JSON object with `token`, `expires_at` or `lifetime`, and perhaps `principal`; or only a JWT, whose
    claims `exp` and `sub` are read without verifying it, which is the broker's part.
    """
    fields = _fields(text)
    value = fields.get("token")
    lifetime, expires_at = _seconds(fields.get("lifetime")), _seconds(fields.get("expires_at"))
    if expires_at is None and lifetime is not None:
        expires_at = now + lifetime
    if not isinstance(value, str) or not value or expires_at is None:
        raise TokenUnreadable(f"{named} printed no token, or none with an expiry")
    if expires_at <= now:
        raise TokenUnreadable(f"{named} printed a token that expired {now - expires_at:.0f} s ago")
    principal = fields.get("principal")
    return Token(value, expires_at, principal if isinstance(principal, str) else "")


def _fields(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        claims = _claims(text)
        return {"token": text, "expires_at": claims.get("exp"), "principal": claims.get("sub")}
    return document if isinstance(document, dict) else {}


def _claims(token: str) -> dict[str, Any]:
    parts = token.split(".")
    if len(parts) not in (2, 3):  # one without a signature may lack the last dot
        return {}
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, RecursionError, binascii.Error):
        return {}
    return claims if isinstance(claims, dict) else {}


def _seconds(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


class _Tokens:
    """This process's tokens, by their commands."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[str, ...], tuple[Token, float]] = {}

    def current(self, command: tuple[str, ...]) -> Token:
        with self._lock:
            known = self._known.get(command)
            if known is not None and time.time() < known[1]:
                return known[0]
            text = output_of(command, SETTING)
            now = time.time()
            token = parsed(text, now, f"{SETTING} ({command[0]})")
            self._known[command] = token, now + _REUSED * (token.expires_at - now)
            return token


_TOKENS: Final = _Tokens()


def callback(command: Sequence[str]) -> Callable[[str], Answer]:
    """Return `oauth_cb` for a client. Raises CommandFailed or SettingsError if there is no token now.

    Asked here first, since a client waits for its first token, and hides why there is none. A failure later is logged,
    and librdkafka asks again.
    """
    words = tuple(command)
    _TOKENS.current(words)

    def answer(_config: str) -> Answer:
        try:
            token = _TOKENS.current(words)
        except HeadraceError as error:
            log.get().warning("no token for Kafka", **{log.REASON: error.problem})
            raise
        return token.value, token.expires_at, token.principal, {}

    return answer
