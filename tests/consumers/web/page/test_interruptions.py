"""A page that stays open while its console, a database or another operator does something."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from playwright.sync_api import Route, expect
from pydantic import SecretStr

from consumers.testing.waiting import until
from infra.settings.model import Settings
from infra.state.history import read_history
from schemas import formats
from tests.consumers.container_repositories import TOO_MANY_TAGS, Feed, fill
from tests.consumers.web.console import TOKEN, TOKENS, Client, running
from tests.consumers.web.page.visits import MS, Visit
from tests.consumers.web.statements import counting

NOWHERE = Settings.model_validate({"kafka": {"bootstrap_servers": "127.0.0.1:1"}})
Visits = Callable[..., Visit]


@pytest.fixture
def caught_up(
    feed: Feed, connection: psycopg.Connection[Any], catch_up: Callable[..., Any], settings: Settings
) -> Settings:
    fill(connection, {1: TOO_MANY_TAGS})
    feed.snapshot({1: TOO_MANY_TAGS})
    catch_up()
    return settings


def test_console_restarted_with_other_tokens_asks_for_one_once(visit: Visits) -> None:
    with running(NOWHERE) as console:
        page = visit(console, failures=True)
        page.give_token()
    live, asked = page.page.locator("#live"), page.page.locator("#token-dialog")
    expect(live).to_have_text("console does not answer", timeout=MS)
    with running(NOWHERE, {"alice": f"another-{TOKEN}"}, port=console.port):
        expect(asked).to_contain_text("this token is not valid", timeout=MS)
        expect(page.page.locator("#identity")).to_have_text("Read-only: give a token", timeout=MS)
        page.page.keyboard.press("Escape")
        expect(live).to_have_text("live", timeout=MS)
        page.see_snapshots(2)
        expect(asked).to_be_hidden()
    expect(live).to_have_text("console does not answer", timeout=MS)
    with running(NOWHERE, {}, port=console.port):
        expect(page.page.get_by_role("button", name="Read-only")).to_be_disabled(timeout=MS)
    expect(live).to_have_text("console does not answer", timeout=MS)
    with running(NOWHERE, port=console.port):
        page.give_token()


def test_token_for_reading_is_asked_for_once_however_often_it_is_missed(visit: Visits) -> None:
    with running(NOWHERE) as console:
        page = visit(console, failures=True)
    live, asked = page.page.locator("#live"), page.page.locator("#token-dialog")
    expect(live).to_have_text("console does not answer", timeout=MS)
    with running(NOWHERE, port=console.port, reading=True):
        expect(asked).to_be_visible(timeout=MS)
        page.page.keyboard.press("Escape")
        page.see_snapshots(2)
        expect(live).to_have_text("needs a token", timeout=MS)
        expect(asked).to_be_hidden()
        page.give_token()
        expect(live).to_have_text("live", timeout=MS)


def test_token_that_is_withdrawn_during_a_change_is_asked_for_again_and_the_reason_stays(
    caught_up: Settings, connection: psycopg.Connection[Any], serve: Callable[..., Client], visit: Visits
) -> None:
    tokens = dict(TOKENS)
    page = visit(serve(caught_up, tokens), failures=True)
    page.give_token()
    page.page.route("**/api/snapshot", lambda route: route.abort())  # it would notice first
    page.card().get_by_role("button", name="Pause skip_resets").click()
    page.page.get_by_label("Why").fill("lunch")
    tokens["alice"] = f"another-{TOKEN}"
    page.page.locator("#change-confirm").click()
    expect(page.page.locator("#token-refused")).to_contain_text("this token is not valid", timeout=MS)
    page.page.get_by_label("Your token").fill(TOKENS["bob"])
    page.page.keyboard.press("Enter")
    expect(page.page.locator("#change-operator")).to_have_text("bob", timeout=MS)
    page.page.locator("#change-confirm").click()
    expect(page.page.locator("#change-dialog")).to_be_hidden(timeout=MS)
    assert [(one.actor, one.reason) for one in read_history(connection)] == [("bob", "lunch")]


def test_answer_of_a_change_leaves_the_dialog_of_the_next_one_open(
    caught_up: Settings, serve: Callable[..., Client], visit: Visits
) -> None:
    page = visit(serve(caught_up))
    page.give_token()
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.page.route("**/pause", hold)
    page.card().get_by_role("button", name="Pause skip_resets").click()
    page.page.locator("#change-confirm").click()

    def asked() -> bool:
        page.see_snapshots(1)
        return bool(held)

    until(asked, "the change is asked for")
    page.page.keyboard.press("Escape")
    page.card().get_by_role("button", name="Pace skip_resets").click()
    held[0].continue_()
    page.state("paused")
    expect(page.page.locator("#announcer")).to_contain_text("skip_resets is paused", timeout=MS)
    expect(page.page.locator("#change-title")).to_have_text("Pace of skip_resets")
    expect(page.page.locator("#change-dialog")).to_be_visible()


@pytest.mark.parametrize("given", ["", "two words", "tökén-of-ünicode-€", f"{TOKEN}x"])
def test_invalid_token_is_explained(alone: Client, visit: Visits, given: str) -> None:
    page = visit(alone, failures=True)
    page.page.get_by_role("button", name="Read-only").click()
    page.page.get_by_label("Your token").fill(given)
    page.page.keyboard.press("Enter")
    expected = "this token is not valid; ask" if given == f"{TOKEN}x" else "this is not a token; it has letters"
    expect(page.page.locator("#token-refused")).to_contain_text(expected, timeout=MS)
    page.page.get_by_label("Your token").fill(TOKEN)
    page.page.keyboard.press("Enter")
    expect(page.page.get_by_role("button", name="As alice")).to_be_visible(timeout=MS)


@pytest.mark.long
def test_console_that_hangs_is_noticed(alone: Client, visit: Visits) -> None:
    page = visit(alone)
    page.page.route("**/api/snapshot", lambda _route: None)
    expect(page.page.locator("#live")).to_have_text("console does not answer", timeout=MS)
    page.page.unroute_all(behavior="ignoreErrors")
    expect(page.page.locator("#live")).to_have_text("live", timeout=MS)


def test_database_that_goes_away_and_comes_back_is_followed(
    caught_up: Settings, serve: Callable[..., Client], visit: Visits
) -> None:
    main = caught_up.databases["main"]
    with counting(main.dsn.get_secret_value()) as (dsn, proxy):
        through = main.model_copy(update={"dsn": SecretStr(dsn)})
        page = visit(serve(caught_up.model_copy(update={"databases": {"main": through}})), failures=True)
        page.state("caught up")
        page.give_token()
        problems, why = page.page.locator("#problems"), page.card().locator(".why")
        expect(problems).to_be_hidden(timeout=MS)
        proxy.leave()
        expect(problems).to_contain_text("does not answer", timeout=MS)
        expect(why).to_have_text("database main does not answer: this is older", timeout=MS)
        page.state("caught up")
        expect(page.page.locator("#live")).to_have_text("live")
        page.card().get_by_role("button", name="Pause skip_resets").click()
        page.page.locator("#change-confirm").click()
        expect(page.page.locator("#change-refused")).to_contain_text("does not answer", timeout=MS)
        proxy.come_back()
        expect(problems).to_be_hidden(timeout=MS)
        expect(why).to_be_hidden(timeout=MS)
        page.confirm("Pause", "it is back")
        page.state("paused")


def test_page_of_another_version_asks_to_be_reloaded(
    alone: Client, visit: Visits, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "The console is of version 99.1 now: reload this page."
    page = visit(alone)
    monkeypatch.setattr(formats, "PROGRAM", "99.1")
    expect(page.page.locator("#problems")).to_contain_text(said, timeout=MS)
    page.page.reload()
    expect(page.page.locator("#version")).to_have_text("99.1", timeout=MS)
    expect(page.page.locator("#problems")).not_to_contain_text(said)


def test_dead_letter_that_another_operator_settled_is_listed_no_more(
    feed: Feed, catch_up: Callable[..., Any], settings: Settings, serve: Callable[..., Client], visit: Visits
) -> None:
    feed.send([(b"k", b"nonsense"), (b"l", b"nonsense")])
    catch_up()
    console = serve(settings)
    page = visit(console, failures=True)
    page.give_token()
    page.card().get_by_role("button", name="2 dead letters").click()
    rows = page.page.locator("#letters-rows tr")
    expect(rows).to_have_count(2, timeout=MS)
    rows.first.get_by_role("checkbox").check()
    path = "/api/migrations/skip_resets/dead-letters"
    event = page.page.locator("#letters-rows input").first.input_value()
    bob = Client(console.port, TOKENS["bob"])
    assert bob.post(f"{path}/discard", {"events": [event]}).status == 200
    page.page.locator("#letters-retry").click()
    page.page.locator("#change-confirm").click()
    expect(page.page.locator("#change-refused")).to_contain_text("has no dead letter", timeout=MS)
    expect(rows).to_have_count(1, timeout=MS)


def test_two_browsers_show_what_the_other_did(
    caught_up: Settings, connection: psycopg.Connection[Any], serve: Callable[..., Client], visit: Visits
) -> None:
    console = serve(caught_up)
    one, other = visit(console), visit(console)
    one.give_token()
    other.give_token()
    other.page.get_by_text("What operators did").click()
    one.card().get_by_role("button", name="Pause skip_resets").click()
    one.confirm("Pause", "from one")
    other.state("paused")
    expect(other.page.locator("#announcer")).to_have_text("skip_resets is paused", timeout=MS)
    other.card().get_by_role("button", name="Resume skip_resets").click()
    other.confirm("Resume", "from the other")
    one.state("caught up")
    expect(other.page.locator("#history-lists")).to_contain_text("from one", timeout=MS)
    until(lambda: len(read_history(connection)) == 2, "both are recorded")
