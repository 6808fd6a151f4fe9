"""Each way to authenticate at a registry, over real HTTP and TLS; no secret in a message."""

from __future__ import annotations

import base64
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from infra.schema_registry import registry_login
from infra.schema_registry.registry_login import TokenRefused
from infra.schema_registry.url_registry import UrlRegistry
from infra.settings.registry_settings import RegistryOauthSettings, RegistrySettings
from schemas.errors import HeadraceError, SettingsError, Unavailable
from tests.infra.schema_registry.registry_server import registry_server
from tests.security.authority import Authority

SECRET = "s3cret of the test/+"
Answer = tuple[int, bytes, dict[str, str]]


class TokenServer:
    """Gives each caller the next token."""

    def __init__(self) -> None:
        self.url = ""
        self.given = 0
        self.life: object = 3600
        self.asked: list[tuple[str, str]] = []
        self.answer: Callable[[], Answer] | None = None

    def respond(self, authorization: str, form: str) -> Answer:
        self.asked.append((authorization, form))
        if self.answer is not None:
            return self.answer()
        self.given += 1
        document = {"access_token": f"token-{self.given}", "token_type": "Bearer", "expires_in": self.life}
        return 200, json.dumps(document).encode(), {}


@contextmanager
def token_server(tls: ssl.SSLContext | None = None) -> Iterator[TokenServer]:
    tokens = TokenServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            form = self.rfile.read(int(self.headers["Content-Length"])).decode()
            status, body, headers = tokens.respond(self.headers["Authorization"], form)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Keep the test's output to itself."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        tokens.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}/token"
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield tokens
        finally:
            server.shutdown()
            thread.join()


def oauth(tokens: TokenServer, **more: Any) -> RegistryOauthSettings:
    settings = {"token_url": tokens.url, "client_id": "me:and/you", "client_secret": SecretStr(SECRET), **more}
    return RegistryOauthSettings(**settings)


def test_token_is_requested_with_the_client_and_used_until_it_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(registry_login, "monotonic", lambda: now)
    with token_server() as tokens:
        current = registry_login.Tokens(oauth(tokens, scope="registry read"), None)
        assert [current.current(), current.current()] == ["token-1", "token-1"]
        now += 2879
        assert current.current() == "token-1"
        now += 2
        assert current.current() == "token-2"
        authorization, form = tokens.asked[0]
        assert form == "grant_type=client_credentials&scope=registry+read"
        client, _, secret = base64.b64decode(authorization.removeprefix("Basic ")).decode().partition(":")
        assert (client, secret) == ("me%3Aand%2Fyou", "s3cret+of+the+test%2F%2B")


def test_registry_gets_the_token_of_the_client() -> None:
    with registry_server() as server, token_server() as tokens:
        server.token = "token-1"
        registry = UrlRegistry(RegistrySettings(url=server.url, oauth=oauth(tokens)))
        registry.ensure_answers()
        registry.ensure_registers([])
        assert tokens.given == 1, "one token for all requests"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((401, b"{}", {}), "gave no token: HTTP 401 Unauthorized"),
        ((302, b"", {"Location": "/elsewhere"}), "gave no token: HTTP 302 Found"),
        ((200, b"<html>", {}), "answered without an access_token"),
        ((200, b"[]", {}), "answered without an access_token"),
        ((200, b"[" * 100_000, {}), "answered without an access_token"),
        ((200, b'{"access_token": 7}', {}), "answered without an access_token"),
        ((200, b'{"access_token": "\\u00e9"}', {}), "answered without an access_token"),
        ((200, b'{"access_token": "t\\r\\nX: y"}', {}), "answered without an access_token"),
        ((200, b'{"access_token": "t", "expires_in": "soon"}', {}), "answered without an access_token"),
    ],
)
def test_server_without_a_token_is_named_without_the_secret(answer: Answer, said: str) -> None:
    with registry_server() as server, token_server() as tokens:
        tokens.answer = lambda: answer
        registry = UrlRegistry(RegistrySettings(url=server.url, oauth=oauth(tokens)))
        with pytest.raises(TokenRefused, match=said) as caught:
            registry.ensure_answers()
        assert tokens.url in str(caught.value)
        assert "s3cret" not in str(caught.value)
        assert len(tokens.asked) == 1, "no redirect is followed"
        assert server.asked == []


def test_server_of_tokens_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with token_server() as tokens:
        settings = oauth(tokens)
    with pytest.raises(Unavailable, match=f"{settings.token_url} does not answer"):
        registry_login.Tokens(settings, None).current()


def server_context(authority: Authority, *, client: bool) -> ssl.SSLContext:
    own = authority.server("registry")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority.certificate)
    context.load_cert_chain(own.certificate, own.key)
    context.verify_mode = ssl.CERT_REQUIRED if client else ssl.CERT_NONE
    return context


def test_registry_is_verified_by_the_ca_file(tmp_path: Path) -> None:
    trusted, other = Authority(tmp_path, "trusted"), Authority(tmp_path, "other")
    with registry_server(server_context(trusted, client=False)) as server:
        UrlRegistry(RegistrySettings(url=server.url, ca_file=trusted.certificate)).ensure_answers()
        for ca_file in (None, other.certificate):
            with pytest.raises(Unavailable, match="certificate verify failed"):
                UrlRegistry(RegistrySettings(url=server.url, ca_file=ca_file)).ensure_answers()


def test_server_of_tokens_is_verified_by_the_ca_file(tmp_path: Path) -> None:
    trusted = Authority(tmp_path, "trusted")
    with token_server(server_context(trusted, client=False)) as tokens:
        assert registry_login.Tokens(oauth(tokens), trusted.certificate).current() == "token-1"
        with pytest.raises(Unavailable, match="certificate verify failed"):
            registry_login.Tokens(oauth(tokens), None).current()


def test_client_certificate_is_presented(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "trusted")
    mine = authority.client("headrace")
    with registry_server(server_context(authority, client=True)) as server:
        settings = RegistrySettings(url=server.url, ca_file=authority.certificate)
        shown = settings.model_copy(update={"certificate_file": mine.certificate, "key_file": mine.key})
        UrlRegistry(shown).ensure_answers()
        UrlRegistry(settings.model_copy(update={"certificate_file": mine.both})).ensure_answers()
        with pytest.raises(Unavailable, match="does not answer"):
            UrlRegistry(settings).ensure_answers()


def test_unusable_files_are_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "trusted")
    mine, other = authority.client("headrace"), authority.client("other")
    missing = tmp_path / "missing.pem"
    for files, said in (
        ({"ca_file": missing}, f"registry.ca_file {missing} cannot be used: No such file"),
        ({"ca_file": mine.key}, f"registry.ca_file {mine.key} cannot be used"),
        ({"certificate_file": missing}, f"registry.certificate_file {missing} cannot be used: No such file"),
        ({"certificate_file": mine.certificate}, f"registry.certificate_file {mine.certificate} cannot be used"),
        ({"certificate_file": mine.certificate, "key_file": other.key}, "cannot be used"),
    ):
        with pytest.raises(SettingsError, match=said):
            UrlRegistry(RegistrySettings.model_validate({"url": "https://127.0.0.1:1", **files}))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"url": f"http://me:{SECRET}@h", "user": "me"}, "a user in url and user exclude each other"),
        ({"url": "http://h", "user": "me", "token": SECRET}, "user and token exclude each other"),
        ({"url": "http://h", "password": SECRET}, "password needs a user"),
        ({"url": "http://h", "key_file": "key.pem"}, "key_file needs a certificate_file"),
        ({"oauth": {"token_url": "file:///etc/passwd", "client_id": "me", "client_secret": SECRET}}, "must be an http"),
        ({"oauth": {"token_url": f"https://me:{SECRET}@h/", "client_id": "me", "client_secret": ""}}, "must be an htt"),
    ],
)
def test_contradictory_settings_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        RegistrySettings.model_validate(settings)


def test_no_secret_is_in_a_repr_or_dump() -> None:
    tokens = TokenServer()
    tokens.url = "http://h/token"
    for settings in (
        RegistrySettings(url="http://h", token=SecretStr(SECRET), key_password=SecretStr(SECRET)),
        RegistrySettings(url="http://h", user="me", password=SecretStr(SECRET)),
        RegistrySettings(url="http://h", oauth=oauth(tokens)),
    ):
        assert SECRET not in f"{settings!r} {settings.model_dump_json()}"


def test_wrong_password_is_not_shown(tmp_path: Path) -> None:
    with registry_server() as server:
        server.credentials = "me:right"
        with pytest.raises(HeadraceError, match="Unauthorized") as caught:
            UrlRegistry(RegistrySettings(url=server.url, user="me", password=SecretStr(SECRET))).ensure_answers()
        assert SECRET not in str(caught.value)
