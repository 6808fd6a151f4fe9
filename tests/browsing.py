"""Debian's Chromium for the tests of pages, axe, and the pictures of docs/images.

`HEADRACE_PICTURES=docs/images .venv/bin/python -m pytest tests/consumers/web/test_page.py \
tests/consumers/report/test_report_in_browser.py` takes all pictures again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

CHROMIUM: Final = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
REQUIRED: Final = os.environ.get("HEADRACE_BROWSER") == "required"
PICTURES: Final = os.environ.get("HEADRACE_PICTURES")
"""A directory for pictures; without it none are taken."""
DESK: Final = ViewportSize(width=1280, height=900)
_SERIOUS: Final = ("serious", "critical")
_LARGEST_BYTES: Final = 300_000


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser; without Chromium the test is skipped, or fails with HEADRACE_BROWSER=required."""
    if CHROMIUM is None and not REQUIRED:
        pytest.skip("no Chromium here: apt-get install chromium")
    assert CHROMIUM is not None, "HEADRACE_BROWSER=required, and there is none"
    with sync_playwright() as playwright:
        # A container's root has no namespaces for the sandbox.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def require_accessible(page: Page) -> None:
    """Fail if axe finds what keeps someone from using the page."""
    found = Axe().run(page).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in _SERIOUS] == []


def picture(page: Page, name: str, *, whole: bool = False) -> None:
    """Take a picture for docs/images, of what is seen or of the whole page, where pictures are wanted."""
    if PICTURES is not None:
        path = Path(PICTURES) / f"{name}.png"
        page.screenshot(path=path, animations="disabled", full_page=whole)
        assert path.stat().st_size < _LARGEST_BYTES
