"""A small Confluent-compatible registry over real HTTP, with faults by name."""

from __future__ import annotations

import base64
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

NO_SUBJECT, NO_SCHEMA = 40401, 40403


class RegistryServer:
    """Keeps schemas as the real one does: one id a schema, versions a subject."""

    def __init__(self) -> None:
        self.schemas: list[str] = []
        self.subjects: dict[str, list[int]] = {}
        self.credentials: str | None = None
        """`user:password` that every request has to bring, None for an open registry."""
        self.token: str | None = None
        """The bearer token that every request has to bring, None for a registry without."""
        self.mode = "READWRITE"
        self.read_only = False
        """Denies this client every registration."""
        self.asked: list[str] = []
        self.connections = 0
        self.disconnections = 0
        self.broken = False
        """Answers everything with 500."""
        self.refusing = False
        """Finds every schema incompatible with those registered under any subject."""
        self.url = ""

    def answer(self, method: str, path: str, body: dict[str, Any], authorization: str | None) -> tuple[int, Any]:
        """Return the status and the content that answer a request."""
        self.asked.append(f"{method} {path}")
        if self.broken:
            return 500, {"error_code": 50001, "message": "Error in the backend data store"}
        if not self._admits(authorization):
            return 401, {"error_code": 401, "message": "Unauthorized"}
        return self._answer(method, path, body)

    def _answer(  # noqa: PLR0911, PLR0912  # one request, one return
        self, method: str, path: str, body: dict[str, Any]
    ) -> tuple[int, Any]:
        match method, [unquote(part) for part in path.strip("/").split("/")]:
            case "GET", ["schemas", "ids", number]:
                if not 0 < int(number) <= len(self.schemas):
                    return 404, {"error_code": NO_SCHEMA, "message": "Schema not found"}
                return 200, {"schema": self.schemas[int(number) - 1]}
            case "GET", ["mode"]:
                return 200, {"mode": self.mode}
            case "GET", ["subjects"]:
                return 200, list(self.subjects)
            case "GET", ["subjects", subject, "versions", "latest"]:
                if subject not in self.subjects:
                    return 404, {"error_code": NO_SUBJECT, "message": f"Subject '{subject}' not found."}
                ids = self.subjects[subject]
                return 200, self._version(subject, len(ids), ids[-1])
            case "DELETE", ["subjects", subject]:
                return 200, list(range(1, len(self.subjects.pop(subject, [])) + 1))
            case "POST", ["subjects", _, "versions"] if self.read_only:
                return 403, {"error_code": 40301, "message": "User is denied operation Write"}
            case "POST", ["subjects", _, "versions"] if self.refusing and self.subjects:
                return 409, {"error_code": 409, "message": "Schema being registered is incompatible"}
            case "POST", ["subjects", subject, "versions"]:
                if body["schema"] not in self.schemas:
                    self.schemas.append(body["schema"])
                registered = self.schemas.index(body["schema"]) + 1
                ids = self.subjects.setdefault(subject, [])
                if registered not in ids:
                    ids.append(registered)
                return 200, self._version(subject, ids.index(registered) + 1, registered)
            case _:
                return 404, {"error_code": 404, "message": "HTTP 404 Not Found"}

    def _version(self, subject: str, version: int, number: int) -> dict[str, Any]:
        return {"subject": subject, "version": version, "id": number, "schema": self.schemas[number - 1]}

    def _admits(self, header: str | None) -> bool:
        if self.token is not None:
            return header == f"Bearer {self.token}"
        if self.credentials is None:
            return True
        return header == f"Basic {base64.b64encode(self.credentials.encode()).decode()}"


def handler_of(registry: RegistryServer) -> type[BaseHTTPRequestHandler]:
    """Return what answers HTTP requests from a registry."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # On a kept connection the body would wait for the acknowledgement of the headers.
        disable_nagle_algorithm = True

        def setup(self) -> None:
            registry.connections += 1
            super().setup()

        def finish(self) -> None:
            super().finish()
            registry.disconnections += 1

        def respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path, given = urlsplit(self.path).path, self.headers.get("Authorization")
            status, content = registry.answer(self.command, path, json.loads(body or b"{}"), given)
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = respond

        def log_message(self, format: str, *args: object) -> None:
            """Keep the test's output to itself."""

    return Handler


@contextmanager
def registry_server(tls: ssl.SSLContext | None = None) -> Iterator[RegistryServer]:
    """Serve a registry on a free port until the end, with `tls` over TLS."""
    registry = RegistryServer()
    with ThreadingHTTPServer(("127.0.0.1", 0), handler_of(registry)) as server:
        registry.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}"
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a refused handshake
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield registry
        finally:
            server.shutdown()
            thread.join()
