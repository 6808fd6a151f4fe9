"""Serves the schemas topic over HTTP, read-only, for programs that ask a Confluent-compatible registry."""

from __future__ import annotations

from collections.abc import Collection
from http import HTTPStatus
from typing import Any, Final

from infra.schema_registry.confluent_answers import (
    CONTENT_TYPE,
    LONGEST_BODY,
    READS,
    Answer,
    BadRequest,
    Request,
    answer,
    error,
    request,
)
from infra.schema_registry.subjects import FollowedSubjects
from infra.service.bounded_http import USUAL, BoundedRequests, BoundedServer, Limits
from infra.service.served_names import ServedNames
from schemas.errors import HeadraceError, printable

_FRESH_SECONDS: Final = 1.0
"""How old an answer may be that later records could change; what is not found is always looked up in the topic."""


class ReadOnlyRegistry(BoundedServer):
    """Listens from its creation, and answers within `serve_forever`, with a thread per connection."""

    def __init__(
        self, address: str, port: int, subjects: FollowedSubjects, hosts: Collection[str] = (), limits: Limits = USUAL
    ) -> None:
        """Raise SettingsError if it cannot listen on the address; `port` 0 chooses a free one.

        Requests have to name an IP address, localhost, `address` or one of `hosts` as their host.
        """
        self.subjects = subjects
        self.names = ServedNames(address, hosts)
        super().__init__(address, port, _Requests, limits, remedy="choose another with --listen")

    def respond(self, asked: Request) -> Answer:
        """Return the answer to a request, from the topic's present records."""
        found = self.subjects.ask(lambda subjects: answer(subjects, asked))
        if found.lasting:
            return found
        self.subjects.refresh(_FRESH_SECONDS if found.status is HTTPStatus.OK else 0.0)
        return self.subjects.ask(lambda subjects: answer(subjects, asked))


class _Requests(BoundedRequests):
    """The requests of one connection."""

    server: ReadOnlyRegistry

    def _respond(self) -> None:
        hosts = self.headers.get_all("Host", [])
        if len(hosts) > 1 or (not hosts and self.request_version >= "HTTP/1.1"):
            return self._give_up(HTTPStatus.BAD_REQUEST, 400, "a request has one Host header")
        if hosts and not self.server.names.include(hosts[0].strip()):
            return self._give_up(
                HTTPStatus.MISDIRECTED_REQUEST, 421, "this host name is not served; name it with --host to serve it"
            )
        body = self._body()
        if body is None:
            return None
        try:
            found = self.server.respond(request(self.command, self.path, body))
        except BadRequest as refused:
            found = error(HTTPStatus.BAD_REQUEST, 400, str(refused))
        except HeadraceError as failed:
            found = error(HTTPStatus.SERVICE_UNAVAILABLE, 50003, printable(failed.problem))
        return self._send(found)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _respond

    def _body(self) -> bytes | None:
        """Return the body; None after an error was sent, with which the connection ends."""
        length = self.headers.get("Content-Length", "0").strip()
        if self.headers.get("Transfer-Encoding") is not None or not (length.isascii() and length.isdigit()):
            self._give_up(HTTPStatus.LENGTH_REQUIRED, 411, "a request's body has a Content-Length")
        elif len(length) > len(str(LONGEST_BODY)) or int(length) > LONGEST_BODY:
            message = f"a request's body has at most {LONGEST_BODY:,} bytes"
            self._give_up(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, 413, message)
        else:
            body = self.rfile.read(int(length))
            if len(body) == int(length):
                return body
            self.close_connection = True  # the client ended within its request
        return None

    def _give_up(self, status: HTTPStatus, code: int, message: str) -> None:
        self.close_connection = True  # the request's body is not read
        self._send(error(status, code, message))

    def _send(self, found: Answer) -> None:
        document: Any = found.document
        allow = ", ".join(READS) if found.status is HTTPStatus.METHOD_NOT_ALLOWED else ""
        self.say(found.status, document, content_type=CONTENT_TYPE, allow=allow)
