"""The console in this process, and a client of its API."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from consumers.web.console_server import serving
from consumers.web.request_guard import Access
from infra.service.served_names import ServedNames
from infra.settings.extras.web_settings import WebSettings
from infra.settings.model import Settings

TOKEN = "a-token-of-the-test"
TOKENS = {"alice": TOKEN, "bob": "another-token-of-the-test"}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def document(self) -> Any:
        return json.loads(self.text)


@dataclass(frozen=True)
class Client:
    """Sends requests as a script does: with a token, and without what only a browser sends."""

    port: int
    token: str | None = TOKEN

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def ask(self, method: str, path: str, body: Any = None, **headers: str | None) -> Answer:
        """Send a request; a header that is None is left out, and `_` in names is `-`."""
        usual = {"Host": f"127.0.0.1:{self.port}"}
        if self.token is not None:
            usual["Authorization"] = f"Bearer {self.token}"
        text = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        if method not in ("GET", "HEAD"):
            usual |= {"Content-Type": "application/json", "Content-Length": str(len(text))}
        given = {name.replace("_", "-").title(): value for name, value in headers.items()}
        lines = [f"{name}: {value}\r\n" for name, value in {**usual, **given}.items() if value is not None]
        with closing(socket.create_connection(("127.0.0.1", self.port), timeout=60)) as connection:
            # At once: a server that refuses the head closes, and a body that comes later would reset the connection.
            connection.sendall(f"{method} {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode("latin-1") + text)
            with closing(http.client.HTTPResponse(connection, method=method)) as answer:
                answer.begin()
                return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read().decode())

    def get(self, path: str, **headers: str | None) -> Answer:
        return self.ask("GET", path, **headers)

    def post(self, path: str, body: Any, **headers: str | None) -> Answer:
        return self.ask("POST", path, body, **headers)

    def snapshot(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get("/api/snapshot").document
        return found

    def migration(self, name: str = "skip_resets") -> dict[str, Any]:
        (found,) = [one for one in self.snapshot()["migrations"] if one["name"] == name]
        return dict(found)


def with_tokens(settings: Settings, tokens: Mapping[str, str] = TOKENS) -> Settings:
    web = WebSettings(tokens={name: SecretStr(token) for name, token in tokens.items()})
    return settings.model_copy(update={"web": web})


@contextmanager
def running(
    settings: Settings,
    tokens: Mapping[str, str] = TOKENS,
    *,
    hosts: tuple[str, ...] = (),
    reading: bool = False,
    port: int = 0,
) -> Iterator[Client]:
    """Serve the console; provides a client with alice's token, if she has one. `port` 0 chooses a free one."""
    access = Access(ServedNames("127.0.0.1", hosts), tokens, reading_needs_token=reading)
    with serving(with_tokens(settings, tokens), "127.0.0.1", port, access, threading.Event()) as chosen:
        yield Client(chosen, tokens.get("alice"))
