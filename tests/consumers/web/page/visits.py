"""A page in a browser, whose console and requests are watched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Response, ViewportSize, expect

from consumers.testing.waiting import PATIENCE
from tests.browsing import DESK, picture, require_accessible
from tests.consumers.web.console import TOKEN

PHONE = ViewportSize(width=390, height=844)
MS = PATIENCE * 1000


class Visit:
    """A page whose console and requests are watched."""

    def __init__(
        self,
        browser: Browser,
        url: str,
        viewport: Any = DESK,
        scheme: Any = "light",
        *,
        failures: bool = False,
        answer: Callable[[], str] | None = None,
    ) -> None:
        """Open the page.

        With `failures`, what Chromium itself says of requests that failed is no error of the page. `answer` returns the
        snapshots in place of the console.
        """
        self._failures = failures
        self.said: list[str] = []
        self.urls: list[str] = []
        self.context = browser.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
        self.context.set_default_timeout(MS)
        self.page: Page = self.context.new_page()
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("response", self._answered)
        if answer is not None:
            self.page.route(
                "**/api/snapshot", lambda route: route.fulfill(body=answer(), content_type="application/json")
            )
        self.page.goto(url)
        expect(self.page.locator("#live")).to_have_text("live", timeout=MS)

    def _heard(self, message: ConsoleMessage) -> None:
        if not (self._failures and message.text.startswith("Failed to load resource")):
            self.said.append(message.text)

    def _answered(self, response: Response) -> None:
        self.urls.append(response.url)

    def card(self, name: str = "skip_resets") -> Locator:
        return self.page.locator(f'[data-migration="{name}"]')

    def state(self, text: str, name: str = "skip_resets") -> None:
        expect(self.card(name).locator(".pill")).to_have_text(text, timeout=MS)

    def give_token(self) -> None:
        self.page.get_by_role("button", name="Read-only").click()
        self.page.get_by_label("Your token").fill(TOKEN)
        self.page.keyboard.press("Enter")
        expect(self.page.get_by_role("button", name="As alice")).to_be_visible(timeout=MS)

    def see_snapshots(self, count: int) -> None:
        for _ in range(count):
            with self.page.expect_response("**/api/snapshot"):
                pass

    def confirm(self, button: str, reason: str) -> None:
        self.page.get_by_label("Why").fill(reason)
        self.page.locator("#change-dialog").get_by_role("button", name=button, exact=True).click()
        expect(self.page.locator("#change-dialog")).to_be_hidden(timeout=MS)

    def require_accessible(self) -> None:
        require_accessible(self.page)

    def picture(self, name: str) -> None:
        picture(self.page, name)
