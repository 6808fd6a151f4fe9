"""Chooses the code path that serves a repository of the registry, by its migration status (seed 004).

For readers: a pure function of the row, so that they need no further connection.
"""

from __future__ import annotations

from enum import Enum, StrEnum
from typing import Final

from schemas.errors import Refused


class Status(StrEnum):
    """The values of `migration_status`."""

    NATIVE = "native"
    """Created on the database, never imported."""
    PRE_IMPORT_IN_PROGRESS = "pre_import_in_progress"
    PRE_IMPORT_COMPLETE = "pre_import_complete"
    PRE_IMPORT_FAILED = "pre_import_failed"
    PRE_IMPORT_CANCELED = "pre_import_canceled"
    IMPORT_IN_PROGRESS = "import_in_progress"
    IMPORT_COMPLETE = "import_complete"
    IMPORT_FAILED = "import_failed"
    IMPORT_CANCELED = "import_canceled"


class CodePath(Enum):
    """The code path that serves a repository."""

    DATABASE = "database"
    OLD = "old"
    """The storage's own metadata, as before the database."""


ON_DATABASE: Final = frozenset((Status.NATIVE, Status.IMPORT_COMPLETE))
"""The states in which a repository is completely in the database; a partial import is not."""


class UnknownStatus(Refused):
    """Add the status to consumers/routing/status_routing.py; an unknown one is never served by guess."""


def status_of(text: str | None) -> Status:
    """Return a row's status; a row without one, as before the backfill, is native. Raises UnknownStatus."""
    if not text:
        return Status.NATIVE
    try:
        return Status(text)
    except ValueError:
        raise UnknownStatus(f"unknown migration status {text[:40]!r}") from None


def code_path(text: str | None) -> CodePath:
    """Return the code path of a repository with status `text`. Raises UnknownStatus."""
    return CodePath.DATABASE if status_of(text) in ON_DATABASE else CodePath.OLD
