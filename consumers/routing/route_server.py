"""Serves lookups of repositories over HTTP, for readers in languages without a router.

Read-only: it answers from a `Router`, and the database is queried once per `refresh_seconds`, regardless of the number
of requests.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final, Protocol
from urllib.parse import parse_qs, urlsplit

from consumers.routing.lookup import CursorTooOld
from infra.service.bounded_http import USUAL, BoundedRequests, BoundedServer, Limits

_LONGEST_NAME: Final = 1 << 15


class Routes(Protocol):
    """The lookups that are served; implemented by `Router`."""

    def homes(self, name: str) -> tuple[str, ...]: ...
    def home(self, name: str) -> str: ...


class RouteServer(BoundedServer):
    """Listens from its creation, and answers within `serve_forever`, with a thread per connection."""

    def __init__(self, address: str, port: int, routes: Routes, limits: Limits = USUAL) -> None:
        """Raise SettingsError if it cannot listen on the address; `port` 0 chooses a free one."""
        self.routes = routes
        super().__init__(address, port, _Answer, limits, remedy="choose another with --address and --port")


class _Answer(BoundedRequests):
    """The requests of one connection."""

    server: RouteServer

    def do_GET(self) -> None:
        """Answer `/homes?name=…`."""
        url = urlsplit(self.path)
        if url.path != "/homes":
            self.say(HTTPStatus.NOT_FOUND, {"error": "ask /homes?name=NAME"})
            return
        try:
            asked = parse_qs(url.query, keep_blank_values=True, errors="strict", max_num_fields=2)
            (name,) = asked["name"]
            name.encode()
        except (KeyError, ValueError):
            self.say(HTTPStatus.BAD_REQUEST, {"error": "ask for one name, as percent-encoded UTF-8: /homes?name=NAME"})
            return
        if len(name) > _LONGEST_NAME:
            self.say(HTTPStatus.BAD_REQUEST, {"error": f"a name has at most {_LONGEST_NAME:,} characters"})
            return
        document: dict[str, Any] = {"name": name, "homes": self.server.routes.homes(name)}
        try:
            document["home"] = self.server.routes.home(name)
        except CursorTooOld as error:
            document |= {"home": None, "reason": str(error)}
        self.say(HTTPStatus.OK, document)

    do_HEAD = do_GET

    def _refuse(self) -> None:
        self.close_connection = True  # the request's body is not read
        self.say(HTTPStatus.METHOD_NOT_ALLOWED, {"error": "this server supports only GET"}, allow="GET, HEAD")

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse
