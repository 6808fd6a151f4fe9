"""Migrations of a test in place of those that are found in files."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from consumers.contract.migration import Migration
from consumers.operations import catalog


def catalog_of(kinds: Mapping[str, type[Migration]]) -> dict[str, object]:
    """Return what makes these all migrations in the catalog's module, also where one has the name of headrace's own."""
    return {"migrations": lambda _settings: kinds, "_own": kinds.get}


def known_are(monkeypatch: pytest.MonkeyPatch, kinds: Mapping[str, type[Migration]]) -> None:
    """Let these be all migrations during a test."""
    for name, value in catalog_of(kinds).items():
        monkeypatch.setattr(catalog, name, value)
