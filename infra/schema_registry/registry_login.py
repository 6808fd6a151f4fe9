"""Authentication at a registry, as a configuration of confluent-kafka's client."""

from __future__ import annotations

import base64
import json
import re
import ssl
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import Any, Final

from infra.settings.registry_settings import RegistryOauthSettings, RegistrySettings
from schemas.errors import HeadraceError, SettingsError, Unavailable

_ANSWER_SECONDS: Final = 10
_LONGEST_ANSWER: Final = 1 << 20
_EARLIER: Final = 0.8
"""A token is renewed after this part of its life: the registry's clock may differ."""
_IN_A_HEADER: Final = re.compile(r"[!-~]+").fullmatch
_USUAL_LIFE_SECONDS: Final = 60
"""The life of a token whose server does not say."""


class TokenRefused(HeadraceError):
    """Correct registry.oauth in the settings, or see the log of the token's server."""


def client_configuration(settings: RegistrySettings) -> dict[str, Any]:
    """Return the client's configuration. Raises SettingsError for a file that cannot be used."""
    configuration: dict[str, Any] = {"url": settings.url}
    if settings.user:
        configuration["basic.auth.user.info"] = f"{settings.user}:{settings.password.get_secret_value()}"
    if token := settings.token.get_secret_value():
        configuration |= _bearer(lambda _: _fields(settings, token))
    if settings.oauth is not None:
        tokens = Tokens(settings.oauth, settings.ca_file)
        configuration |= _bearer(lambda _: _fields(settings, tokens.current()))
    files = {
        "ssl.ca.location": settings.ca_file,
        "ssl.certificate.location": settings.certificate_file,
        "ssl.key.location": settings.key_file,
    }
    configuration |= {name: str(file) for name, file in files.items() if file is not None}
    if password := settings.key_password.get_secret_value():
        configuration["ssl.key.password"] = password
    _require_usable(settings)
    return configuration


def _bearer(fields: Any) -> dict[str, Any]:
    # The client's own kinds of token cannot be without a cluster, nor verify the token's server by `ca_file`.
    return {
        "bearer.auth.credentials.source": "CUSTOM",
        "bearer.auth.custom.provider.function": fields,
        "bearer.auth.custom.provider.config": {},
    }


def _fields(settings: RegistrySettings, token: str) -> dict[str, str]:
    fields = {"bearer.auth.token": token, "bearer.auth.logical.cluster": settings.logical_cluster}
    if settings.identity_pool:
        fields["bearer.auth.identity.pool.id"] = settings.identity_pool
    return fields


def _require_usable(settings: RegistrySettings) -> None:
    """Raise SettingsError for a missing or wrong file: the client's own error names none."""
    if settings.ca_file is None and settings.certificate_file is None:
        return  # reading the default authorities takes a fifth of a second
    context = _context(settings.ca_file)
    if settings.certificate_file is None:
        return
    password = settings.key_password.get_secret_value()
    try:
        # An empty password is one: without any, a prompt would wait for an operator.
        context.load_cert_chain(settings.certificate_file, settings.key_file, password)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"registry.certificate_file {settings.certificate_file} cannot be used: {_reason(error)}",
            remedy="name a readable certificate in PEM format, its key_file, and the key's key_password if it has one",
        ) from None


def _context(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"registry.ca_file {ca_file} cannot be used: {_reason(error)}",
            remedy="name a readable file of certificates in PEM format",
        ) from None


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or "not a certificate"


class _Unfollowed(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, which would send the secret to another server."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class Tokens:
    """Access tokens of an OAuth client, each used until shortly before it expires."""

    def __init__(self, settings: RegistryOauthSettings, ca_file: Path | None) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._token = ""
        self._until = 0.0
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPSHandler(context=_context(ca_file)), _Unfollowed()
        )

    def current(self) -> str:
        """Return a token that is valid now. Raises TokenRefused, and Unavailable if no server answers."""
        with self._lock:
            if monotonic() >= self._until:
                answer = self._answer()
                token, life = answer.get("access_token"), answer.get("expires_in", _USUAL_LIFE_SECONDS)
                if not isinstance(token, str) or not _IN_A_HEADER(token) or not isinstance(life, int | float):
                    raise TokenRefused(f"{self._settings.token_url} answered without an access_token")
                self._token, self._until = token, monotonic() + _EARLIER * life
            return self._token

    def _answer(self) -> Mapping[str, Any]:
        settings = self._settings
        form = {"grant_type": "client_credentials", **({"scope": settings.scope} if settings.scope else {})}
        client = f"{_quoted(settings.client_id)}:{_quoted(settings.client_secret.get_secret_value())}"
        headers = {"Authorization": f"Basic {base64.b64encode(client.encode()).decode()}", "Accept": "application/json"}
        body = urllib.parse.urlencode(form).encode()
        request = urllib.request.Request(settings.token_url, body, headers)  # noqa: S310  # the settings allow only http
        try:
            with self._opener.open(request, timeout=_ANSWER_SECONDS) as answer:
                document = json.loads(answer.read(_LONGEST_ANSWER))
        except urllib.error.HTTPError as error:
            with error:
                raise TokenRefused(f"{settings.token_url} gave no token: HTTP {error.code} {error.reason}") from None
        except OSError as error:
            reason = getattr(error, "reason", None) or error
            raise Unavailable(f"{settings.token_url} does not answer: {reason}") from error
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise TokenRefused(f"{settings.token_url} answered without an access_token")
        return document


def _quoted(text: str) -> str:
    # RFC 6749, 2.3.1: both are form-encoded before they become a user and a password.
    return urllib.parse.quote_plus(text)
