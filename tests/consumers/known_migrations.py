"""Migrations of a test in place of those that are found in files."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from consumers.contract.migration import Migration
from consumers.operations import catalog


def known_are(monkeypatch: pytest.MonkeyPatch, kinds: Mapping[str, type[Migration]]) -> None:
    """Let these be all migrations, also where one has the name of headrace's own."""
    monkeypatch.setattr(catalog, "migrations", lambda _settings: kinds)
    monkeypatch.setattr(catalog, "_own", kinds.get)
