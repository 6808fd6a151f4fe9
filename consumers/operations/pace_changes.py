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
    INSERT INTO headrace.paces AS p (migration, max_rate, transaction_ms)
    VALUES (%(migration)s, %(max_rate)s, %(transaction_ms)s)
    ON CONFLICT (migration) DO UPDATE
       SET max_rate = CASE WHEN %(keep)s THEN coalesce(excluded.max_rate, p.max_rate) ELSE excluded.max_rate END,
           transaction_ms = CASE WHEN %(keep)s THEN coalesce(excluded.transaction_ms, p.transaction_ms)
                                 ELSE excluded.transaction_ms END,
           changed_at = now()
    RETURNING max_rate, transaction_ms
"""


def set_pace(
    settings: Settings,
    migration: type[Migration],
    database: str,
    max_rate: float | None,
    transaction_ms: int | None,
    *,
    keep: bool = False,
    actor: Actor | None = None,
) -> tuple[float | None, int | None]:
    """Have every consumer of `migration` work at this pace, and return it; None: as in the settings. Idempotent.

    `max_rate` is in rows changed per second by each consumer, 0 without limit; `transaction_ms` in milliseconds. With
    `keep`, None leaves that one as it is. Running consumers follow within a second, and others when they start, until
    it is set to None. Raises UsageError for a value that no pace can have.
    """
    if max_rate is not None and not 0 <= max_rate <= _LARGEST_RATE:
        raise UsageError(f"max_rate cannot be {max_rate:g}", remedy=f"give 0 to {_LARGEST_RATE:,.0f} rows per second")
    if transaction_ms is not None and not 1 <= transaction_ms <= _LONGEST_MS:
        raise UsageError(f"transaction_ms cannot be {transaction_ms}", remedy=f"give 1 to {_LONGEST_MS:,} milliseconds")
    section = settings.database(database)
    with connect.session(section, name=f"pace {migration.name}") as connection:
        ensure_control_schema(connection, database, section.gitlab_schemas, prefix=settings.prefix)
        with connection.transaction():
            row = connection.execute(
                _SET,
                {"migration": migration.name, "max_rate": max_rate, "transaction_ms": transaction_ms, "keep": keep},
            ).fetchone()
            assert row is not None
            rate, duration = row
            record_action(
                connection, OperatorAction.PACE, [migration.name], actor, max_rate=rate, transaction_ms=duration
            )
    return rate, duration
