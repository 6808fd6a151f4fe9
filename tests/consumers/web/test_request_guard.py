"""Which requests are answered: over real HTTP, without servers behind the console."""

from __future__ import annotations

import hmac
import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from consumers.web.request_guard import Access
from infra.service.served_names import ServedNames
from infra.settings.file import load_settings
from infra.settings.model import Settings
from schemas.errors import SettingsError
from tests.consumers.web.console import TOKEN, TOKENS, Client, running
from tests.shells import Shell

NOWHERE = Settings.model_validate({"kafka": {"bootstrap_servers": "127.0.0.1:1"}})
CHANGES = [
    ("pause", {}),
    ("resume", {}),
    ("replay", {}),
    ("pace", {"max_rate": 1}),
    ("dead-letters/retry", {"events": ["a"]}),
    ("dead-letters/discard", {"events": ["a"]}),
]
PATHS = [f"/api/migrations/skip_resets/{what}" for what, _ in CHANGES]
FOREIGN: list[dict[str, str | None]] = [
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://127.0.0.1"},  # the same machine, another port
    {"origin": "http://127.0.0.1:1"},
    {"sec_fetch_site": "cross-site"},
    {"sec_fetch_site": "same-site"},
    {"sec_fetch_site": "none"},
]


@pytest.fixture
def read_only() -> Iterator[Client]:
    with running(NOWHERE, {}) as client:
        yield client


@pytest.fixture
def guarded() -> Iterator[Client]:
    """A console that others reach as console.example."""
    with running(NOWHERE, hosts=("console.example",), reading=True) as client:
        yield client


def test_api_changes_nothing_that_this_test_does_not_ask_for(alone: Client) -> None:
    described = alone.get("/openapi.json").document["paths"]
    changing = {path for path, methods in described.items() if methods.keys() - {"get", "head"}}
    assert changing == {path.replace("skip_resets", "{name}") for path in PATHS}


@pytest.mark.parametrize(("what", "body"), CHANGES)
def test_change_without_a_token_is_refused(read_only: Client, what: str, body: dict[str, Any]) -> None:
    path = f"/api/migrations/skip_resets/{what}"
    for headers in ({}, {"authorization": "Bearer "}, {"authorization": f"Bearer {TOKEN}"}):
        answer = Client(read_only.port, None).post(path, body, **headers)
        assert answer.status in (401, 403)
        assert answer.document.keys() == {"problem", "remedy"}


@pytest.mark.parametrize(("what", "body"), CHANGES)
def test_change_with_a_wrong_token_is_refused(alone: Client, what: str, body: dict[str, Any]) -> None:
    path = f"/api/migrations/skip_resets/{what}"
    wrong: list[str | None] = [
        None,
        "Bearer",
        "Bearer ",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer {TOKEN} {TOKEN}",
        "Bearer \xff",
    ]
    for each in wrong:
        answer = Client(alone.port, None).post(path, body, authorization=each)
        assert answer.status == 401, each
        assert answer.headers["www-authenticate"] == "Bearer"
    for method in ("PUT", "PATCH", "DELETE", "OPTIONS", "NONSENSE"):
        assert Client(alone.port, None).ask(method, path, body).status == 401


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_change_from_another_page_is_refused(alone: Client, path: str, headers: dict[str, str | None]) -> None:
    assert alone.post(path, {}, **headers).status == 403


@pytest.mark.parametrize("headers", FOREIGN[:-1], ids=str)
def test_data_is_not_for_other_pages(alone: Client, headers: dict[str, str | None]) -> None:
    assert alone.get("/api/session", **headers).status == 403


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "a b", "", None])
def test_foreign_host_is_refused(alone: Client, host: str | None) -> None:
    for path in ("/", "/api/session", "/static/main.js", "/openapi.json"):
        assert alone.get(path, host=host).status in (400, 421)
    for path in PATHS:
        assert alone.post(path, {}, host=host).status in (400, 421)


def test_several_hosts_are_refused(alone: Client) -> None:
    with closing(socket.create_connection(("127.0.0.1", alone.port), timeout=60)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_own_page_with_a_token_is_admitted(alone: Client, host: str) -> None:
    own = {"host": f"{host}:{alone.port}", "origin": f"http://{host}:{alone.port}", "sec_fetch_site": "same-origin"}
    answer = alone.post("/api/migrations/no_such/pause", {}, **own)
    assert answer.status == 404
    assert answer.document["problem"] == "no migration is called no_such"


def test_session_names_the_operator(alone: Client, read_only: Client) -> None:
    found = {"operator": "alice", "changes": True, "reading_needs_token": False}
    assert alone.get("/api/session").document == found
    assert Client(alone.port, TOKENS["bob"]).get("/api/session").document == {**found, "operator": "bob"}
    assert Client(alone.port, None).get("/api/session").document == {**found, "operator": None}
    assert Client(alone.port, "not-a-token-at-all").get("/api/session").status == 401
    assert Client(read_only.port, None).get("/api/session").document["changes"] is False


def test_reading_needs_a_token_where_others_reach_it(guarded: Client) -> None:
    without_token = Client(guarded.port, None)
    for path in ("/api/snapshot", "/api/session", "/api/curves", "/api/history/main"):
        assert without_token.get(path, host="console.example").status == 401
    assert without_token.get("/", host="console.example").status == 200, "the page asks for the token"
    assert guarded.get("/api/session", host="console.example").status == 200


@pytest.mark.parametrize("path", ["/", "/static/main.js", "/api/session", "/openapi.json", "/no/such", "/static/../x"])
def test_every_response_has_the_headers(alone: Client, path: str) -> None:
    require_headers(alone.get(path).headers)


def test_refusal_has_the_headers(alone: Client) -> None:
    refused = alone.get("/", host="evil.example")
    assert refused.status == 421
    require_headers(refused.headers)


def require_headers(headers: Mapping[str, str]) -> None:
    assert headers["content-security-policy"].startswith("default-src 'self';")
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-frame-options"] == "DENY"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "no-referrer"
    assert "server" not in headers
    assert not any(name.startswith("access-control-") for name in headers)


def test_page_has_no_script_or_style_of_its_own_and_loads_nothing_from_elsewhere(alone: Client) -> None:
    page = alone.get("/").text
    assert "<style" not in page
    assert " style=" not in page
    assert "<script>" not in page
    names = [name for name in page.split('"') if name.startswith(("/", "http"))]
    for name in names:
        assert name.startswith(("/static/", "/openapi.json")), name
        assert alone.get(name).status == 200, name


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"content_type": "text/plain"}, {}, 415),
        ({"content_type": None}, {}, 415),
        ({"content_length": str(2 << 20)}, None, 413),
        ({"content_length": "9" * 15}, None, 413),
        ({"content_length": None, "transfer_encoding": "chunked"}, b"2\r\n{}\r\n0\r\n\r\n", 411),
        ({}, b"{", 422),
        ({}, b"[]", 422),
        ({}, {"reason": "x" * 1001}, 422),
        ({}, {"unknown": 1}, 422),
        ({}, {"database": "No Such"}, 422),
    ],
)
def test_body_that_is_not_asked_for_is_refused(
    alone: Client, headers: dict[str, str | None], body: Any, status: int
) -> None:
    assert alone.post(PATHS[0], body, **headers).status == status


def test_every_token_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    compare = hmac.compare_digest

    def comparing(known: bytes, given: bytes) -> bool:
        compared.append(known)
        return compare(known, given)

    monkeypatch.setattr(hmac, "compare_digest", comparing)
    access = Access(ServedNames("127.0.0.1"), TOKENS, reading_needs_token=False)
    for token, operator in ((TOKENS["alice"], "alice"), (TOKENS["bob"], "bob"), ("", None), ("\udcff", None)):
        compared.clear()
        assert access.operator(token) == operator
        assert compared == [each.encode() for each in TOKENS.values()]


def test_token_is_in_no_log_and_no_answer(alone: Client, capfd: pytest.CaptureFixture[str]) -> None:
    answers = [
        alone.get("/api/session"),
        alone.post("/api/migrations/no_such/pause", {"reason": "why"}),
        alone.get(f"/api/{TOKEN}"),
        alone.get(f"/{TOKEN}?token={TOKEN}"),
        alone.post("/api/migrations/skip_resets/pause", {"reason": TOKEN, "wrong": TOKEN}),
        Client(alone.port, f"{TOKEN}x").get("/api/session"),
    ]
    assert [answer.status for answer in answers] == [200, 404, 404, 404, 422, 401]
    assert all(TOKEN not in answer.text + json.dumps(dict(answer.headers)) for answer in answers)
    assert TOKEN not in "".join(capfd.readouterr())


def test_token_is_in_no_setting_that_is_shown(tmp_path: Path) -> None:
    file = tmp_path / "headrace.toml"
    file.write_text(f'[web.tokens]\nalice = "{TOKEN}"\n')
    settings = load_settings(file)
    assert TOKEN not in repr(settings) + settings.model_dump_json()


@pytest.mark.parametrize("token", ["short", "with a space in it", "ünprintable-here-it-is"])
def test_token_that_is_easy_to_guess_is_refused(tmp_path: Path, token: str) -> None:
    file = tmp_path / "headrace.toml"
    file.write_text(f'[web.tokens]\nalice = "{token}"\n', encoding="utf-8")
    with pytest.raises(SettingsError, match="a token has 16 ASCII characters or more") as raised:
        load_settings(file)
    assert token not in str(raised.value)


def test_token_of_two_operators_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "headrace.toml"
    file.write_text(f'[web.tokens]\nalice = "{TOKEN}"\nbob = "{TOKEN}"\n')
    with pytest.raises(SettingsError, match="two operators have the same token") as raised:
        load_settings(file)
    assert TOKEN not in str(raised.value)


def test_what_is_not_served_is_answered_as_described(alone: Client) -> None:
    for method, path, status in (
        ("GET", "/no/such", 404),
        ("GET", "/static/%00", 404),
        ("GET", "/static/..%2f..%2fapplication.py", 404),
        ("GET", f"/static/{'x' * 5_000}", 404),
        ("PUT", PATHS[0], 405),
        ("HEAD", "/api/session", 405),
    ):
        answer = alone.ask(method, path, {} if method == "PUT" else None)
        assert answer.status == status, path
        assert method == "HEAD" or answer.document.keys() == {"problem", "remedy"}
    assert "POST" in alone.ask("PUT", PATHS[0], {}).headers["allow"]
    assert alone.post(PATHS[0], b"[" * 100_000).status in (400, 422)
    assert alone.post(PATHS[0], b'{"reason": ' + b"9" * 100_000 + b"}").status in (400, 422)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--listen", "0.0.0.0:0"], "address 0.0.0.0"),
        (["--listen", "[::]:0"], "address ::"),
        (["--host", "console.example"], "--host console.example"),
    ],
)
def test_console_for_others_without_a_token_is_refused(shell: Shell, words: list[str], named: str) -> None:
    shell.settings("postgresql://u@127.0.0.1:1/d", "127.0.0.1:1")
    line = shell.call("web", *words).error(3)
    assert f"{named} would show the console to everyone" in line
    assert "[web.tokens]" in line
