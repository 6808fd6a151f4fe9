"""The report and the history of the demo's run, in a real browser."""

from __future__ import annotations

import io
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from html import escape
from pathlib import Path

import psycopg
import pytest
from playwright.sync_api import Browser, Page
from rich.console import Console

from consumers.testing.waiting import until
from infra.demo.resets import Resets
from infra.demo.stage import Stage
from infra.stack import embedded_stack
from tests.browsing import DESK, PICTURES, chromium, picture, require_accessible

pytestmark = [pytest.mark.stack, pytest.mark.long]

NAME = "skip_resets"
ROWS = 300_000 if PICTURES else 20_000
_MINUTES = 4 if PICTURES else 0
"""How long the operator slows the run down: a run has a sample each minute, and pictures are of several."""
_TERMINAL = """
    body { margin: 0; padding: 20px 24px; background: #14181f; color: #dde3ea; }
    pre { margin: 0; font: 14px/1.5 "DejaVu Sans Mono", monospace; white-space: pre-wrap; }
    b { color: #7ad0a2; font-weight: 600; }
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


class Demo:
    """The first act of `headrace demo` on servers of its own, with an operator who intervenes."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._act = Resets(stage, ROWS)
        stage.configure([self._act])
        self.failed: BaseException | None = None

    def play(self) -> None:
        # So slowly that it is not done before the operator has done everything.
        self.command("pace", NAME, "--max-rate", "15" if PICTURES else "1", "--reason", "CHG-7: slowly at first")
        operator = threading.Thread(target=self._operate, name="operator")
        operator.start()
        self._act.play()
        operator.join()
        if self.failed is not None:
            raise self.failed

    def command(self, *words: str) -> str:
        ended = subprocess.run(
            self._stage._words(*words), cwd=self._stage.place, check=True, capture_output=True, text=True, timeout=400
        )
        return ended.stdout

    def _operate(self) -> None:
        try:
            with psycopg.connect(self._act._dsn, autocommit=True) as connection:
                until(lambda: self._stage.progress(connection, NAME)[1] > 0, "the migration has begun")
            self.command("pace", NAME, "--transaction-ms", "50", "--reason", "CHG-7: office hours")
            threading.Event().wait(60 * _MINUTES / 2)
            self.command("pause", NAME, "--reason", "CHG-7: the index on migration_state is built")
            threading.Event().wait(20 if PICTURES else 0)
            self.command("resume", NAME, "--reason", "CHG-7: the index is there")
            threading.Event().wait(60 * _MINUTES / 2)
            self.command("pace", NAME, "--as-in-settings", "--reason", "CHG-7: at night")
        except BaseException as error:
            self.failed = error


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    with ExitStack() as held:
        stack = held.enter_context(embedded_stack(fsync=False))
        place = stack.directory / "demo"
        place.mkdir()
        stage = Stage(Console(file=io.StringIO()), stack, place)
        held.callback(stage.close)
        made = Demo(stage)
        made.play()
        yield made


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """A function that opens a page with nothing but its own text: it may load nothing, and says nothing."""
    with ExitStack() as held:
        said: list[str] = []

        def made(path: Path, scheme: str = "light") -> Page:
            context = browser.new_context(viewport=DESK, color_scheme=scheme)  # type: ignore[arg-type]
            held.callback(context.close)
            page = context.new_page()
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("request", lambda request: said.append(request.url) if request.url != path.as_uri() else None)
            page.goto(path.as_uri())
            return page

        yield made
        assert said == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_of_the_demo(demo: Demo, tmp_path: Path, open_page: Callable[..., Page], scheme: str) -> None:
    file = tmp_path / "report.html"
    demo.command("report", NAME, "--run", "1", "--output", str(file), "--reason", "CHG-7")
    page = open_page(file, scheme)
    assert page.title() == f"headrace: {NAME}, run 1"
    text = page.locator("body").inner_text()
    for words in ("CHG-7: office hours", "the index on migration_state is built", "Paused", "skipped"):
        assert words.lower() in text.lower(), words
    require_accessible(page)
    if scheme == "light":
        page.set_viewport_size({"width": 940, "height": 900})
        picture(page, "report", whole=True)


def test_history_of_the_demo(demo: Demo, tmp_path: Path, open_page: Callable[..., Page]) -> None:
    shown = demo.command("history", NAME)
    whats = [line.split()[2] for line in shown.splitlines() if line[:2] == "20"]
    assert whats == ["pace", "pace", "pause", "resume", "pace", "replay", "verify"]
    assert "why: CHG-7: the index is there" in shown
    file = tmp_path / "history.html"
    words = f"<b>$ headrace history {NAME}</b>\n{escape(shown)}"
    file.write_text(
        f'<!doctype html><html lang="en"><title>t</title><style>{_TERMINAL}</style><main><pre>{words}</pre>'
    )
    page = open_page(file)
    page.set_viewport_size({"width": 1100, "height": 100})
    picture(page, "history", whole=True)
