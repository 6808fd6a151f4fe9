"""Resets container repositories that were skipped for too many tags, so that their import is retried.

Seed 003: rows with state `import_skipped` and reason 2 become `default` without a reason. Other rows do not change, nor
do other columns unless `clear_shipped_columns` is set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from consumers.contract.decisions import Change, Decision, Skip
from consumers.contract.migration import Cursor, Migration, Options
from consumers.contract.suggested_index import SuggestedIndex
from infra.postgres.parameters import array_parameter
from schemas.events import UNCHANGED, ChangeEvent, Op

SKIPPED: Final = "import_skipped"
TOO_MANY_TAGS: Final = 2

_GUARD: Final = f"migration_state = '{SKIPPED}' AND migration_skipped_reason = {TOO_MANY_TAGS}"
_RESET: Final = "migration_state = 'default', migration_skipped_reason = NULL"
_SHIPPED: Final = (
    ", migration_pre_import_started_at = NULL, migration_pre_import_done_at = NULL"
    ", migration_import_started_at = NULL, migration_import_done_at = NULL, migration_aborted_at = NULL"
    ", migration_skipped_at = NULL, migration_retries_count = 0, migration_aborted_in_state = NULL"
)

_DELETED: Final = Skip("deleted")
_TRUNCATED: Final = Skip("truncated")
_NOT_SKIPPED: Final = Skip("not skipped")
_OTHER_REASON: Final = Skip("skipped for another reason")


class SkipResetsOptions(Options):
    """Options of skip_resets."""

    clear_shipped_columns: bool = False
    """Also clear the migration timestamps, retries and aborted-in state, as GitLab did."""


class SkipResets(Migration):
    """Reset skipped container repositories."""

    name = "skip_resets"
    gitlab_schema = "gitlab_main"
    tables = ("public.container_repositories",)
    columns = ("id", "migration_state", "migration_skipped_reason")
    mentions = (SKIPPED,)
    suggested_indexes = (SuggestedIndex(tables[0], ("migration_state", "migration_skipped_at", "id"), _GUARD),)
    options_type = SkipResetsOptions
    options: SkipResetsOptions

    def decide(self, event: ChangeEvent) -> Decision:
        """Return Change for a row that may be skipped for too many tags; see Migration.decide."""
        row = event.after
        if row is None:
            return _TRUNCATED if event.op is Op.TRUNCATE else _DELETED
        state, reason = row["migration_state"], row["migration_skipped_reason"]
        if state is not UNCHANGED and state != SKIPPED:
            return _NOT_SKIPPED
        if reason is not UNCHANGED and reason != TOO_MANY_TAGS:
            return _OTHER_REASON
        return Change(row["id"])

    def apply(self, cursor: Cursor, changes: Sequence[Change]) -> int:
        """Reset the rows that are still skipped for too many tags; see Migration.apply."""
        # In key order, so that two consumers cannot deadlock.
        keys = sorted({change.key for change in changes})  # type: ignore[type-var]
        shipped = _SHIPPED if self.options.clear_shipped_columns else ""
        cursor.execute(
            f"UPDATE public.container_repositories SET {_RESET}{shipped}"  # noqa: S608 - constants of this file
            f" WHERE id = ANY(%s::bigint[]) AND {_GUARD}",
            (array_parameter(keys),),
        )
        return cursor.rowcount

    def remaining(self, cursor: Cursor) -> int:
        """Count the rows that are skipped for too many tags."""
        cursor.execute(f"SELECT count(*) FROM public.container_repositories WHERE {_GUARD}")  # noqa: S608
        row = cursor.fetchone()
        assert row is not None
        return int(row[0])
