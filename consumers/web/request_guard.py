"""Decides which requests the console answers, before anything else sees them: by Host, Origin and token.

A page of another site may make a browser send requests here, even to 127.0.0.1. So each request has to name this server
as its host, a request for data has to come from the console's own page or from no page at all, and one that changes
something needs a token in a header, which no other page can set.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from consumers.web.documents import Problem
from infra.service import log
from infra.service.served_names import ServedNames
from schemas.lazy_dataclass import dataclass

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]

OPERATOR: Final = "operator"
"""The key of the request's state that has the name of its token, or None."""
API: Final = "/api/"
LONGEST_BODY: Final = 1 << 20

_READS: Final = ("GET", "HEAD")
_RESPONSE: Final = (
    (
        b"content-security-policy",
        b"default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'",
    ),
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
    (b"cache-control", b"no-store"),
)


@dataclass(frozen=True)
class Access:
    """Who may do what: the server's names, operator → token, and whether reading needs a token, too."""

    names: ServedNames
    tokens: Mapping[str, str]
    reading_needs_token: bool

    def operator(self, token: str) -> str | None:
        """Return whose token this is, None if it is no one's; takes as long whatever the token."""
        found = None
        for name, known in self.tokens.items():
            if hmac.compare_digest(known.encode(), token.encode("utf-8", "surrogatepass")):
                found = name
        return found


class Refusal(Exception):
    """A request that is not answered."""

    def __init__(self, status: HTTPStatus, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.status = status
        self.problem = problem
        self.remedy = remedy


def admitted(access: Access, method: str, path: str, headers: Headers) -> str | None:
    """Return the operator of a request, None without a token; raises Refusal."""
    values = _Values(headers)
    host = values.only("host")
    if host is None or not access.names.include(host):
        raise Refusal(
            HTTPStatus.MISDIRECTED_REQUEST, "this host name is not served", "name it with `headrace web --host NAME`"
        )
    changes = method not in _READS
    if changes or path.startswith(API):
        _require_own_page(values, host, changes=changes)
    operator = _operator(access, values)
    if operator is None and (changes or (access.reading_needs_token and path.startswith(API))):
        if not access.tokens:
            raise Refusal(HTTPStatus.FORBIDDEN, "the console is read-only", "configure a token: [web.tokens]")
        raise Refusal(HTTPStatus.UNAUTHORIZED, "this needs a token", "send it as `Authorization: Bearer TOKEN`")
    if changes:
        _require_small_json(values)
    return operator


def _require_own_page(values: _Values, host: str, *, changes: bool) -> None:
    site = values.only("sec-fetch-site")
    # A browser says "none" for what its user typed, which is never a change.
    if site not in (None, "same-origin") and (changes or site != "none"):
        raise Refusal(HTTPStatus.FORBIDDEN, "the request comes from a page of another site", "open the console itself")
    origin = values.only("origin")
    if origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
        raise Refusal(
            HTTPStatus.FORBIDDEN, "the request comes from a page of another origin", "open the console itself"
        )


def _operator(access: Access, values: _Values) -> str | None:
    given = values.only("authorization")
    if given is None:
        return None
    scheme, _, token = given.partition(" ")
    operator = access.operator(token.strip()) if scheme.lower() == "bearer" else None
    if operator is None:
        raise Refusal(HTTPStatus.UNAUTHORIZED, "this token is not valid", "ask who operates headrace for another")
    return operator


def _require_small_json(values: _Values) -> None:
    length = values.only("content-length") or "0"
    if values.only("transfer-encoding") is not None or not (length.isascii() and length.isdigit()):
        raise Refusal(HTTPStatus.LENGTH_REQUIRED, "the body's length is missing", "send Content-Length")
    if len(length) > len(str(LONGEST_BODY)) or int(length) > LONGEST_BODY:
        raise Refusal(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {LONGEST_BODY:,} bytes", "ask for less at a time"
        )
    kind = (values.only("content-type") or "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body is not JSON", "send Content-Type: application/json")


class _Values:
    """The headers of a request."""

    def __init__(self, headers: Headers) -> None:
        self._headers = headers

    def only(self, name: str) -> str | None:
        """Return the header's value, None without one; raises Refusal for several."""
        found = [value.decode("latin-1").strip() for each, value in self._headers if each.decode("latin-1") == name]
        if len(found) > 1:
            raise Refusal(HTTPStatus.BAD_REQUEST, f"several {name} headers", "send one")
        return found[0] if found else None


class RequestGuard:
    """The outermost ASGI application: passes admitted requests on, and adds headers to each response."""

    def __init__(self, application: Application, access: Access) -> None:
        self._application = application
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; anything else than HTTP is ignored."""
        if scope["type"] != "http":
            return
        started = False

        async def guarded(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = _with(message.get("headers", ()))
            await send(message)

        try:
            operator = admitted(self._access, scope["method"], scope["path"], scope["headers"])
            scope.setdefault("state", {})[OPERATOR] = operator
            await self._application(scope, receive, guarded)
        except Refusal as refusal:
            await _refuse(refusal, guarded, head=scope["method"] == "HEAD")
        except Exception as error:
            # Without the message, which may quote values of rows.
            log.get().warning("request failed", method=scope["method"], error=type(error).__name__)
            if not started:
                failed = Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "the request failed", "see the console's log")
                await _refuse(failed, guarded, head=scope["method"] == "HEAD")


def _with(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    own = {name for name, _ in _RESPONSE}
    return [*(each for each in headers if each[0].lower() not in own), *_RESPONSE]


async def _refuse(refusal: Refusal, send: Send, *, head: bool) -> None:
    body = Problem(problem=refusal.problem, remedy=refusal.remedy).model_dump_json().encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),  # the request's body is not read
    ]
    if refusal.status is HTTPStatus.UNAUTHORIZED:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": int(refusal.status), "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else body})
