"""Changes the pace of a migration while its consumers run, through its database, which they poll."""

from __future__ import annotations

from typing import Final

from consumers.contract.migration import Migration
from infra.postgres import connect
from infra.postgres.control import ensure_control_schema
from infra.settings.model import Settings
from infra.state.history import Actor, OperatorAction, record_action
from schemas.errors import UsageError

_LARGEST_RATE: Final = 1e9
_LONGEST_MS: Final = 3_600_000
_SET: Final = """
    INSERT INTO headrace.paces (migration, max_rate, transaction_ms) VALUES (%s, %s, %s)
    ON CONFLICT (migration) DO UPDATE
       SET max_rate = excluded.max_rate, transaction_ms = excluded.transaction_ms, changed_at = now()
"""


def set_pace(
    settings: Settings,
    migration: type[Migration],
    database: str,
    max_rate: float | None,
    transaction_ms: int | None,
    *,
    actor: Actor | None = None,
) -> None:
    """Have every consumer of `migration` work at this pace; None: as in the settings. Idempotent.

    `max_rate` is in rows changed per second by each consumer, 0 without limit; `transaction_ms` in milliseconds.
    Running consumers follow within a second, and others when they start, until it is set to None. Raises UsageError
    for a value that no pace can have.
    """
    if max_rate is not None and not 0 <= max_rate <= _LARGEST_RATE:
        raise UsageError(f"max_rate cannot be {max_rate:g}", remedy=f"give 0 to {_LARGEST_RATE:,.0f} rows per second")
    if transaction_ms is not None and not 1 <= transaction_ms <= _LONGEST_MS:
        raise UsageError(f"transaction_ms cannot be {transaction_ms}", remedy=f"give 1 to {_LONGEST_MS:,} milliseconds")
    section = settings.database(database)
    with connect.session(section, name=f"pace {migration.name}") as connection:
        ensure_control_schema(connection, database, section.gitlab_schemas, prefix=settings.prefix)
        with connection.transaction():
            connection.execute(_SET, (migration.name, max_rate, transaction_ms))
            record_action(
                connection,
                OperatorAction.TUNE,
                [migration.name],
                actor,
                max_rate=max_rate,
                transaction_ms=transaction_ms,
            )
