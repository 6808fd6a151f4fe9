"""The page of a large installation: sixty migrations, twelve databases, names and texts as long as they may be."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, ViewportSize, expect

from consumers.operations.overview.status_models import State
from tests.browsing import DESK
from tests.consumers.web.console import Client
from tests.consumers.web.page.made_snapshots import long_name, many, migration, snapshot
from tests.consumers.web.page.visits import MS, PHONE, Visit

HOSTILE = '<img id="planted" src=x onerror="document.title=1"><b id="planted">' + "w" * 900
MIGRATIONS, DATABASES = 60, 12


@pytest.fixture
def shown(browser: Browser, alone: Client) -> Iterator[Callable[..., Visit]]:
    """A function that opens a page of a snapshot; another one is shown once the list has it."""
    visits: list[Visit] = []

    def show(documents: list[str], **options: Any) -> Visit:
        visit = Visit(browser, alone.url, answer=lambda: documents[-1], **options)
        visits.append(visit)
        return visit

    yield show
    for each in visits:
        each.context.close()
        assert each.said == []


@pytest.mark.parametrize(
    "viewport", [pytest.param(PHONE, id="phone"), pytest.param(DESK, id="desk", marks=pytest.mark.long)]
)
def test_everything_fits_whatever_its_names_and_texts(shown: Callable[..., Visit], viewport: ViewportSize) -> None:
    page = shown([many(DATABASES, MIGRATIONS, HOSTILE)], viewport=viewport)
    expect(page.page.locator("[data-migration]")).to_have_count(MIGRATIONS, timeout=MS)
    expect(page.page.locator("[data-source]")).to_have_count(DATABASES)
    for details in page.page.locator("article details").all()[:3]:
        details.locator("summary").click()
    assert page.page.locator("#planted").count() == 0
    wider = page.page.evaluate(
        """width => [...document.querySelectorAll('body *')]
            .filter((one) => !one.closest('.scroll, .flow, .unseen, dialog'))
            .filter((one) => one.getBoundingClientRect().right > width)
            .map((one) => one.outerHTML.slice(0, 120))""",
        viewport["width"],
    )
    assert wider == []
    assert page.page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    page.require_accessible()


def test_flow_says_what_it_leaves_out(shown: Callable[..., Visit]) -> None:
    documents = [many(DATABASES, MIGRATIONS, "why")]
    page = shown(documents)
    left_out = page.page.locator("#flow-left-out")
    expect(left_out).to_contain_text("Drawn are 12 of 60 migrations", timeout=MS)
    expect(left_out).to_be_visible()
    expect(page.page.locator(".flow svg")).to_have_attribute("aria-label", re.compile("12 migrations"))
    documents.append(many(2, 4, "why"))
    expect(left_out).to_be_hidden(timeout=MS)


def test_focus_stays_where_it_is_when_cards_change_their_order(shown: Callable[..., Visit]) -> None:
    first, second = long_name("first_", 0), long_name("second_", 0)
    documents = [snapshot([migration(name, "main", "running", "") for name in (first, second)], "")]
    page = shown(documents)
    button = page.card(second).get_by_role("button", name="Dead letters")
    button.focus()
    states: dict[str, State] = {first: "running", second: "failed"}
    documents.append(snapshot([migration(name, "main", state, "why") for name, state in states.items()], ""))
    page.state("failed", second)
    expect(page.page.locator("[data-migration]").first).to_have_attribute("data-migration", second)
    expect(button).to_be_focused()
