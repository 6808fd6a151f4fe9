"""A real browser for the tests: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
REQUIRED = os.environ.get("HEADRACE_BROWSER") == "required"


@contextmanager
def chromium() -> Iterator[Browser]:
    """Yield the browser; skips the test where there is none, unless HEADRACE_BROWSER requires it."""
    if CHROMIUM is None and not REQUIRED:
        pytest.skip("no Chromium here: apt-get install chromium")
    assert CHROMIUM is not None, "HEADRACE_BROWSER=required, and there is none"
    with sync_playwright() as playwright:
        # A container's root has no namespaces for the sandbox.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()
