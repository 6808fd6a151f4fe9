"""Reads what a database has recorded of its migrations: one statement, so one snapshot, however many there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any, Final

import psycopg

from consumers.ledger.progress import Connection, Place
from infra.postgres import table_format
from infra.postgres.control import Owner, Ownership
from schemas.lazy_dataclass import dataclass

FRESH_SECONDS: Final = 15.0
"""A rate or a throttle that was not updated for so long belongs to a consumer that is gone."""

_RECORDED: Final = """
    SELECT d.name, d.prefix, d.format, d.format_by, pg_is_in_recovery(),
           (SELECT jsonb_object_agg(o.gitlab_schema, jsonb_build_array(o.owner, o.epoch))
              FROM headrace.schema_ownership o),
           n.name, coalesce(m.run, 0), coalesce(m.paused, false), m.completed_at IS NOT NULL, m.failed, {pace},
           (SELECT h.reason FROM headrace.throttles h
             WHERE h.migration = n.name AND h.seen_at > now() - make_interval(secs => %(fresh)s)
             ORDER BY h.seen_at DESC LIMIT 1),
           p.topic, p.partition, p.next_offset, p.applied, p.skipped, p.dead_letters, p.skip_reasons, p.member,
           CASE WHEN p.updated_at > now() - make_interval(secs => %(fresh)s)
                 AND row_number() OVER (PARTITION BY m.name, p.member ORDER BY p.updated_at DESC) = 1
                THEN p.rate ELSE 0 END
      FROM (SELECT) AS always
      LEFT JOIN headrace.database d ON true
      LEFT JOIN ({names}) n ON %(name)s::text IS NULL OR n.name = %(name)s
      LEFT JOIN headrace.migrations m ON m.name = n.name
      {join}
      LEFT JOIN headrace.progress p ON p.migration = m.name AND p.run = m.run
     ORDER BY n.name, p.topic, p.partition
"""
"""Every partition has the rate of its consumer as a whole: a consumer's last one counts."""
_STATEMENTS: Final = (
    _RECORDED.format(
        pace="a.max_rate, a.transaction_ms",
        # A pace may be set before the first run.
        names="SELECT name FROM headrace.migrations UNION SELECT migration FROM headrace.paces",
        join="LEFT JOIN headrace.paces a ON a.migration = n.name",
    ),
    # Until a consumer or a producer of this version has started, which creates the table.
    _RECORDED.format(pace="NULL::float8, NULL::int", names="SELECT name FROM headrace.migrations", join=""),
)


@dataclass()
class Recorded:
    """The records of a migration; the defaults are those before its first run."""

    run: int = 0
    paused: bool = False
    complete: bool = False
    failed: str | None = None
    offsets: dict[Place, int] = field(default_factory=dict)
    consumers: dict[Place, str] = field(default_factory=dict)
    """The consumer that had each partition last, as `host:pid`."""
    applied: int = 0
    skipped: int = 0
    dead_letters: int = 0
    skip_reasons: dict[str, int] = field(default_factory=dict)
    throttled_by: str | None = None
    rate: float = 0.0
    max_rate: float | None = None
    """Set by an operator while consumers run; None: the settings decide."""
    transaction_ms: int | None = None
    """As `max_rate`."""

    @property
    def members(self) -> set[str]:
        """The consumers that had a partition last."""
        return set(self.consumers.values())


@dataclass(frozen=True)
class Records:
    """What a database has recorded: about itself, its prefix, and each migration that has run or has a pace."""

    ownership: Ownership
    prefix: str | None
    migrations: Mapping[str, Recorded]


def read_records(connection: Connection, database: str, name: str | None = None) -> Records | None:
    """Return the records of migration `name`, or of all; None if headrace has no tables there. Writes nothing.

    `database` names it in messages. Raises NewerFormat.
    """
    asked = {"name": name, "fresh": FRESH_SECONDS}
    for statement in _STATEMENTS:
        try:
            rows = connection.execute(statement, asked).fetchall()
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            continue
        return _read(rows, database)
    return None


def _read(rows: list[tuple[Any, ...]], database: str) -> Records:
    own_name, prefix, version, by, standby, owners = rows[0][:6]
    table_format.known(version, by, database)
    found: dict[str, Recorded] = {}
    for row in rows:
        migration, run, paused, complete, failed, max_rate, transaction_ms, throttled_by = row[6:14]
        if migration is None:
            continue
        one = found.setdefault(
            migration,
            Recorded(
                run,
                paused,
                complete,
                failed,
                max_rate=max_rate,
                transaction_ms=transaction_ms,
                throttled_by=throttled_by,
            ),
        )
        _add_partition(one, *row[14:])
    recorded = {schema: Owner(owner, epoch) for schema, (owner, epoch) in (owners or {}).items()}
    return Records(Ownership(own_name, standby, recorded), prefix, found)


def _add_partition(
    found: Recorded,
    topic: str | None,
    partition: int,
    offset: int,
    applied: int,
    skipped: int,
    dead_letters: int,
    reasons: Mapping[str, int],
    member: str,
    rate: float,
) -> None:
    if topic is None:
        return
    place = Place(topic, partition)
    found.offsets[place] = offset
    if member:
        found.consumers[place] = member
    found.applied += applied
    found.skipped += skipped
    found.dead_letters += dead_letters
    found.rate += rate
    for reason, count in reasons.items():
        found.skip_reasons[reason] = found.skip_reasons.get(reason, 0) + count
