"""Writes the pages of docs/reference that are generated: `make reference`."""

from __future__ import annotations

from tests.reference.pages import FOLDER, PAGES

for name, page in PAGES.items():
    (FOLDER / name).write_text(page(), encoding="utf-8")
