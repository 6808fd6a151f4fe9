"""A console of the test's own, and a browser to visit it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser

from infra.settings.model import Settings
from tests.browsing import chromium
from tests.consumers.web.console import TOKEN, Client, running
from tests.consumers.web.page.visits import Visit


@pytest.fixture
def console(settings: Settings) -> Iterator[Client]:
    """The console of the test's database, with the token of alice, who may change things."""
    with running(settings) as client:
        yield client


@pytest.fixture(scope="module")
def alone() -> Iterator[Client]:
    """A console without databases, whose Kafka does not answer: for requests that get no further than the guard."""
    settings = Settings.model_validate({"kafka": {"bootstrap_servers": "127.0.0.1:1"}})
    with running(settings) as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running_browser:
        yield running_browser


@pytest.fixture
def serve() -> Iterator[Callable[..., Client]]:
    """A function that serves a console until the end of the test."""
    with contextlib.ExitStack() as served:
        yield lambda *arguments, **options: served.enter_context(running(*arguments, **options))


@pytest.fixture
def visit(browser: Browser, serve: Callable[..., Client]) -> Iterator[Callable[..., Visit]]:
    """A function that opens a page, which is closed before its console.

    Nothing may be said in the browser's console, or asked of another address.
    """
    visits: list[Visit] = []

    def open_page(console: Client, **options: Any) -> Visit:
        visits.append(Visit(browser, console.url, **options))
        return visits[-1]

    yield open_page
    for each in visits:
        kept = each.page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]")
        assert kept == [0, 0, ""]
        each.context.close()
        assert each.said == []
        assert {url.split("/")[2] for url in each.urls} == {each.urls[0].split("/")[2]}
        assert not any(TOKEN in url for url in each.urls)
