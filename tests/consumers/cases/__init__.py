"""The migrations as the contract test needs to know them: one file a migration, with a class `Case`."""

from __future__ import annotations

import importlib

from consumers.testing.case import Case


def case_of(name: str) -> type[Case]:
    """Return the case of the migration called `name`."""
    module = importlib.import_module(f"tests.consumers.cases.{name}")
    case: type[Case] = module.Case
    return case
