"""Which code path serves a repository of the registry, by its migration status (seed 004).

For readers: a pure function of what stands in the row, so that they need no connection of their own.
"""

from __future__ import annotations

from enum import Enum, StrEnum
from typing import Final

from schemas.errors import Refused


class Status(StrEnum):
    """What `migration_status` may say."""

    NATIVE = "native"
    """Created on the database, and never anywhere else."""
    PRE_IMPORT_IN_PROGRESS = "pre_import_in_progress"
    PRE_IMPORT_COMPLETE = "pre_import_complete"
    PRE_IMPORT_FAILED = "pre_import_failed"
    PRE_IMPORT_CANCELED = "pre_import_canceled"
    IMPORT_IN_PROGRESS = "import_in_progress"
    IMPORT_COMPLETE = "import_complete"
    IMPORT_FAILED = "import_failed"
    IMPORT_CANCELED = "import_canceled"


class CodePath(Enum):
    """Who serves a repository."""

    DATABASE = "database"
    OLD = "old"
    """The storage's own metadata, as before the database."""


ON_DATABASE: Final = frozenset((Status.NATIVE, Status.IMPORT_COMPLETE))
"""The states in which all of a repository is in the database. Half an import is not."""


class UnknownStatus(Refused):
    """Nothing is served by guess: add the status to consumers/routing/status_routing.py once it is known."""


def status_of(text: str | None) -> Status:
    """Return the status that a row says; one without, as before the backfill, is native. Raises UnknownStatus."""
    if not text:
        return Status.NATIVE
    try:
        return Status(text)
    except ValueError:
        raise UnknownStatus(f"no code path is known for the migration status {text[:40]!r}") from None


def code_path(text: str | None) -> CodePath:
    """Return who serves a repository whose row says `text`. Raises UnknownStatus."""
    return CodePath.DATABASE if status_of(text) in ON_DATABASE else CodePath.OLD
