"""The page in a real browser: live, in the dark and on a phone, by keyboard, and for a screen reader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from playwright.sync_api import expect
from psycopg import sql

from consumers.testing.waiting import until
from infra.postgres.control import ensure_control_schema
from infra.settings.model import Settings
from infra.state.history import OperatorAction, read_history, record_action
from tests.browsing import DESK
from tests.conftest import Database
from tests.consumers.conftest import Member
from tests.consumers.container_repositories import DEFAULT, TOO_MANY_TAGS, Feed, fill, written
from tests.consumers.web.console import Client
from tests.consumers.web.page.visits import MS, PHONE, Visit
from tests.producers.sources import Source, settings_for
from tests.producers.sources import running as producing

pytestmark = pytest.mark.stack


@pytest.fixture
def busy(feed: Feed, connection: psycopg.Connection[Any], settings: Settings) -> Settings:
    """Two thousand rows to change, and one that a constraint rejects."""
    connection.execute(
        "ALTER TABLE container_repositories ADD CONSTRAINT poison CHECK (migration_state <> 'default' OR id > 3)"
    )
    rows = {key: TOO_MANY_TAGS if key % 2 else DEFAULT for key in range(4, 4004)}
    fill(connection, {**rows, 1: TOO_MANY_TAGS})
    feed.snapshot({1: TOO_MANY_TAGS})
    feed.snapshot(rows)
    return settings


def done(visit: Visit) -> float:
    return float(visit.card().locator("progress").first.evaluate("bar => bar.value"))


def test_running_migration_is_followed_paused_resumed_and_paced(
    busy: Settings,
    connection: psycopg.Connection[Any],
    members: Callable[..., Member],
    serve: Callable[..., Client],
    visit: Callable[..., Visit],
) -> None:
    console = serve(busy)
    slow = {"max_rate": 20, "transaction_ms": 200}
    assert console.post("/api/migrations/skip_resets/pace", slow).status == 200
    members()
    page = visit(console)
    page.state("running")
    before = done(page)
    until(lambda: done(page) > before, "the bar moves")
    page.require_accessible()
    page.picture("console")

    page.give_token()
    page.card().get_by_role("button", name="Pause skip_resets").click()
    page.confirm("Pause", "lunch")
    page.state("paused")
    rows = len(written(connection))
    page.see_snapshots(3)  # the last transaction is in them
    at = done(page)
    page.see_snapshots(3)
    assert (len(written(connection)), done(page)) == (rows, at)
    page.require_accessible()
    page.card().get_by_role("button", name="Resume skip_resets").click()
    expect(page.page.get_by_label("Why")).to_have_value("")
    page.confirm("Resume", "")
    page.state("running")
    until(lambda: len(written(connection)) > rows, "the consumers continue")

    page.card().get_by_role("button", name="Pace skip_resets").click()
    page.page.get_by_label("Rows per second").fill("0")
    page.confirm("Change the pace", "tonight")
    page.state("caught up")
    expect(page.card()).to_contain_text("No rate limit", timeout=MS)
    page.page.get_by_text("What operators did").click()
    expect(page.page.locator("#history-lists")).to_contain_text("lunch", timeout=MS)
    page.require_accessible()
    recorded = [(one.action, one.actor, one.via, one.reason) for one in read_history(connection)]
    assert recorded[1:] == [
        ("pause", "alice", "console", "lunch"),
        ("resume", "alice", "console", None),
        ("pace", "alice", "console", "tonight"),
    ]


@pytest.mark.long
def test_dead_letter_is_retried_and_another_discarded(
    busy: Settings,
    feed: Feed,
    connection: psycopg.Connection[Any],
    catch_up: Callable[..., Any],
    serve: Callable[..., Client],
    visit: Callable[..., Visit],
) -> None:
    feed.send([(b"k", b"nonsense")])
    catch_up()
    console = serve(busy)
    page = visit(console)
    page.state("caught up")
    page.give_token()
    page.card().get_by_role("button", name="2 dead letters").click()
    dialog = page.page.get_by_role("dialog", name="Dead letters of skip_resets")
    expect(dialog.locator("tbody tr")).to_have_count(2, timeout=MS)
    page.require_accessible()
    page.picture("console-dead-letters")
    connection.execute("ALTER TABLE container_repositories DROP CONSTRAINT poison")
    row = dialog.locator("tbody tr", has_text="23514")
    expect(row).to_contain_text("id=1")
    row.get_by_role("checkbox").check()
    dialog.get_by_role("button", name="Retry").click()
    page.confirm("Retry", "the constraint was dropped")
    expect(dialog.locator("tbody tr")).to_have_count(1, timeout=MS)
    expect(page.page.locator("#announcer")).to_have_text("1 applied, 0 needed nothing, 0 still dead letters")
    assert 1 in written(connection)
    dialog.get_by_role("checkbox", name="Choose all").check()
    dialog.get_by_role("button", name="Discard").click()
    page.confirm("Discard for good", "")
    expect(dialog).to_contain_text("There are none.", timeout=MS)
    page.page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()


@pytest.mark.long
def test_refused_change_is_explained_in_its_dialog(
    busy: Settings, members: Callable[..., Member], serve: Callable[..., Client], visit: Callable[..., Visit]
) -> None:
    """A status of 409 is an answer; Chromium mentions it in its console all the same."""
    members()
    console = serve(busy)
    until(lambda: console.migration()["members"], "a consumer is alive")
    page = visit(console)
    page.give_token()
    page.card().get_by_role("button", name="Replay skip_resets").click()
    page.page.locator("#change-confirm").click()
    expect(page.page.locator("#change-refused")).to_contain_text("has running consumers", timeout=MS)
    page.page.keyboard.press("Escape")
    page.said = [each for each in page.said if "status of 409" not in each]


@pytest.mark.long
def test_page_works_by_keyboard_alone(
    busy: Settings, serve: Callable[..., Client], visit: Callable[..., Visit]
) -> None:
    console = serve(busy)
    page = visit(console)
    page.give_token()
    focused = "document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent"
    for _ in range(60):
        page.page.keyboard.press("Tab")
        if page.page.evaluate(focused) == "Pause skip_resets":
            break
    assert page.page.evaluate(focused) == "Pause skip_resets"
    page.page.keyboard.press("Enter")
    page.page.keyboard.type("by keyboard")
    page.page.keyboard.press("Tab")
    page.page.keyboard.press("Tab")
    page.page.keyboard.press("Enter")
    page.state("paused")
    assert page.page.evaluate(focused) == "Resume skip_resets", "the focus returns to the button"


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone_in_the_dark(
    busy: Settings,
    members: Callable[..., Member],
    serve: Callable[..., Client],
    visit: Callable[..., Visit],
    scheme: str,
) -> None:
    console = serve(busy)
    assert console.post("/api/migrations/skip_resets/pace", {"max_rate": 20}).status == 200
    members()
    page = visit(console, viewport=PHONE, scheme=scheme)
    page.state("running")
    width = page.page.evaluate("document.documentElement.scrollWidth")
    assert width <= PHONE["width"], "nothing is wider than the screen"
    page.require_accessible()
    page.picture(f"console-phone-{scheme}")
    if scheme == "dark":
        page.page.set_viewport_size(DESK)
        page.picture("console-dark")


def test_texts_of_others_are_shown_as_texts(
    feed: Feed,
    connection: psycopg.Connection[Any],
    settings: Settings,
    catch_up: Callable[..., Any],
    serve: Callable[..., Client],
    visit: Callable[..., Visit],
) -> None:
    """A dead letter's reason, why the run failed, and what an operator wrote."""
    hostile = '<b id="planted">bold</b>'
    poison = "ALTER TABLE container_repositories ADD CONSTRAINT {} CHECK (migration_state <> 'default')"
    connection.execute(sql.SQL(poison).format(sql.Identifier(hostile)))
    fill(connection, {1: TOO_MANY_TAGS})
    feed.snapshot({1: TOO_MANY_TAGS})
    catch_up()
    console = serve(settings)
    assert console.post("/api/migrations/skip_resets/pause", {"reason": hostile}).status == 200
    connection.execute("UPDATE headrace.migrations SET failed = %s", (hostile,))
    page = visit(console)
    page.state("failed")
    expect(page.card().locator(".why")).to_have_text(hostile)
    page.page.get_by_text("What operators did").click()
    expect(page.page.locator("#history-lists")).to_contain_text(hostile, timeout=MS)
    page.card().get_by_role("button", name="1 dead letters").click()
    expect(page.page.locator("#letters-rows")).to_contain_text(hostile, timeout=MS)
    assert page.page.locator("#planted").count() == 0


def test_change_is_asked_for_once_however_often_its_button_is_pressed(
    busy: Settings, connection: psycopg.Connection[Any], serve: Callable[..., Client], visit: Callable[..., Visit]
) -> None:
    page = visit(serve(busy))
    page.give_token()
    page.card().get_by_role("button", name="Pause skip_resets").click()
    page.page.locator("#change-confirm").dblclick()
    page.state("paused")
    assert [one.action for one in read_history(connection)] == ["pause"]


def test_forgotten_token_is_not_sent(busy: Settings, serve: Callable[..., Client], visit: Callable[..., Visit]) -> None:
    page = visit(serve(busy))
    page.give_token()
    page.page.get_by_role("button", name="As alice").click()
    page.page.get_by_role("button", name="Forget it").click()
    expect(page.page.get_by_role("button", name="Read-only")).to_be_visible(timeout=MS)
    with page.page.expect_request("**/api/snapshot") as asked:
        pass
    assert "authorization" not in asked.value.all_headers()


def test_console_without_tokens_is_read_only(
    busy: Settings, serve: Callable[..., Client], visit: Callable[..., Visit]
) -> None:
    console = serve(busy, {})
    page = visit(console)
    expect(page.card().get_by_role("button", name="Pause skip_resets")).to_be_disabled()
    expect(page.page.get_by_role("button", name="Read-only")).to_be_disabled()
    page.require_accessible()


def test_console_that_stops_is_noticed_and_followed_again(
    busy: Settings, serve: Callable[..., Client], visit: Callable[..., Visit]
) -> None:
    console = serve(busy)
    page = visit(console)
    page.page.route("**/api/snapshot", lambda route: route.abort())
    expect(page.page.locator("#live")).to_have_text("console does not answer", timeout=MS)
    page.page.unroute("**/api/snapshot")
    expect(page.page.locator("#live")).to_have_text("live", timeout=MS)
    page.said = [each for each in page.said if "ERR_FAILED" not in each]


@pytest.mark.long
def test_throttled_snapshot_says_why_and_how_fast_it_may_be(
    bootstrap_servers: str, prefix: str, database: Database, serve: Callable[..., Client], visit: Callable[..., Visit]
) -> None:
    connection = database.connect()
    connection.execute(
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 50);"
        " CREATE TABLE busy AS SELECT 'a report is <b>made</b>' AS reason"
    )
    snapshot = {
        "chunk_rows": 7,
        "max_mb_per_second": 2.5,
        "health_seconds": 0.05,
        "health": {"sql": "SELECT reason FROM public.busy"},
    }
    source = Source(settings_for(bootstrap_servers, prefix, database.dsn, "public.t", snapshot=snapshot), connection)
    with producing(source) as producer:
        page = visit(serve(source.settings))
        card = page.page.locator('[data-source="main"]')
        expect(card.locator(".pill")).to_have_text("snapshot throttled", timeout=MS)
        expect(card).to_contain_text("The snapshot is throttled by sql: a report is <b>made</b>", timeout=MS)
        expect(card).to_contain_text("0 of 1 tables · at most 2.5 MB/s", timeout=MS)
        page.require_accessible()
        connection.execute("DELETE FROM busy")
        producer.caught_up()
        expect(card.locator(".pill")).to_have_text("streaming", timeout=MS)
        expect(card).not_to_contain_text("throttled", timeout=MS)
        expect(card).not_to_contain_text("MB/s", timeout=MS)


def test_rows_left_are_those_that_verify_counted_last(
    busy: Settings, connection: psycopg.Connection[Any], serve: Callable[..., Client], visit: Callable[..., Visit]
) -> None:
    ensure_control_schema(connection, "main", ["gitlab_main"])
    for left in (2_001, 1_234):
        record_action(connection, OperatorAction.VERIFY, ["skip_resets"], None, remaining=left, given_up=0)
    record_action(connection, OperatorAction.VERIFY, ["public.container_repositories"], None, rows=5, missing=0)
    page = visit(serve(busy))
    expect(page.card()).to_contain_text("1,234 rows were left when counted", timeout=MS)
