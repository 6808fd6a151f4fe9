"""Collects the document of `headrace status`: migrations, sources, and gitlab schemas that were given away.

Its fields are a contract (consumers.operations.overview.status_models).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any, Final

import psycopg

from consumers.contract import counting
from consumers.contract.counting import Count
from consumers.contract.discovery import Broken
from consumers.contract.external import WorkStatus
from consumers.contract.migration import Migration, Shared
from consumers.dead_letters.given_up import read_work_status
from consumers.delivery.topics import source_topics
from consumers.ledger import owner_lookup
from consumers.ledger.progress import Place
from consumers.ledger.recorded import Recorded, read_records
from consumers.operations import catalog
from consumers.operations.catalog import Owning
from consumers.operations.group_admin import members
from consumers.operations.overview.source_status import asked_source
from consumers.operations.overview.status_models import MigrationStatus, PartitionStatus, State
from infra.guard import given_away
from infra.kafka import topics
from infra.postgres import connect, control
from infra.settings.model import Settings
from infra.state.positions import read_sources
from schemas.errors import HeadraceError, OwnershipMoved, UsageError
from schemas.lazy_dataclass import dataclass
from schemas.topics import group_name

_COUNT_MS: Final = 2_000
"""How long the server may count the remaining rows; after that the planner's estimate is reported."""


@dataclass(frozen=True)
class Placed:
    """A migration and the database that it writes; `problem`: no consumer can write there now."""

    kind: type[Migration]
    database: str
    problem: str | None = None


@dataclass()
class Known:
    """What is known of a migration, from its database and from Kafka."""

    recorded: Recorded = field(default_factory=Recorded)
    members: Sequence[str] = ()
    ends: Mapping[Place, int] = field(default_factory=dict)
    work: WorkStatus = field(default_factory=WorkStatus)
    remaining: Count = field(default_factory=lambda: Count(None))
    error: str | None = None


def gather(settings: Settings) -> dict[str, Any]:
    """Return the document of `status --json`.

    A migration whose database is not in the settings is left out; one whose database does not respond has `error`; one
    that runs once per database is listed once per database. Raises BrokerUnavailable if Kafka does not respond.
    """
    migrations = [described(settings, each, _known(settings, each)).document() for each in placed(settings)]
    migrations += [described_broken(entry).document() for _, entry in sorted(catalog.broken(settings).items())]
    sources = read_sources(settings)
    return {
        "migrations": migrations,
        "sources": [asked_source(settings, *each).model_dump(mode="json") for each in sorted(sources.items())],
        "given_away": [each.document() for each in given_away.survey(settings, sources)],
    }


def placed(settings: Settings, owning: Owning = owner_lookup.owning_database) -> Iterator[Placed]:
    """Yield each migration that can run with its database, by name; `owning` is as for catalog.target_database."""
    broken = catalog.broken(settings)
    for name, kind in sorted(catalog.migrations(settings).items()):
        if name in broken:
            continue
        if kind.shared is Shared.PER_DATABASE and settings.migration(name).database is None:
            yield from (Placed(kind, database) for database in catalog.listing(settings, kind.gitlab_schema))
            continue
        try:
            yield Placed(kind, catalog.target_database(settings, kind, owning))
        except UsageError:
            if name in settings.migrations:
                raise
        except OwnershipMoved as error:
            # During a switchover no consumer writes: the records of one of the two databases are shown.
            yield Placed(kind, catalog.listing(settings, kind.gitlab_schema)[0], str(error))


def described_broken(entry: Broken) -> MigrationStatus:
    """Return the status of a migration that cannot run, with the error in its file."""
    nothing = described_fields(Known(error=str(entry)))
    return MigrationStatus(name=entry.name, gitlab_schema="", database="", state="failed", **nothing)


def described(settings: Settings, place: Placed, known: Known) -> MigrationStatus:
    """Return the status of a migration."""
    kind, found = place.kind, known.recorded
    fields = described_fields(known)
    left = sum(max(0, each.end_offset - each.offset) for each in fields["partitions"])
    state = state_of(found, alive=bool(known.members), topics=bool(known.ends), left=left, given_up=known.work.given_up)
    section = settings.migration(kind.name)
    return MigrationStatus(
        name=kind.name,
        gitlab_schema=kind.gitlab_schema,
        database=place.database,
        state="waiting" if place.problem else state,
        **{
            **fields,
            "eta_seconds": _eta(left, fields["rate"], begun=bool(known.ends and found.offsets)),
            "max_rate": section.max_rate if found.max_rate is None else found.max_rate,
            "transaction_ms": section.transaction_ms if found.transaction_ms is None else found.transaction_ms,
            "error": place.problem or known.error,
        },
    )


def described_fields(known: Known) -> dict[str, Any]:
    """Return the fields of MigrationStatus that need nothing else."""
    found, work = known.recorded, known.work
    return {
        "run": found.run,
        "paused": found.paused,
        "complete": found.complete and not work.given_up,
        "applied": found.applied,
        "skipped": found.skipped,
        "skip_reasons": found.skip_reasons,
        "dead_letters": found.dead_letters,
        "given_up": work.given_up,
        "reported": work.reported,
        "reached": work.reached,
        "remaining": known.remaining.rows,
        "remaining_estimated": known.remaining.estimated,
        "rate": round(found.rate, 1) if known.members else 0.0,
        "eta_seconds": None,
        "members": list(known.members),
        "throttled_by": found.throttled_by if known.members else None,
        "partitions": [
            PartitionStatus(
                topic=place.topic,
                partition=place.partition,
                offset=found.offsets.get(place, 0),
                end_offset=end,
                consumer=found.consumers.get(place),
            )
            for place, end in sorted(known.ends.items())
        ],
        "failed": found.failed,
        "error": known.error,
    }


def _eta(left: int, rate: float, *, begun: bool) -> float | None:
    # Before the first consumer an empty topic says that nothing was copied yet, not that nothing is left to do.
    if begun and left == 0:
        return 0.0
    return round(left / rate, 1) if rate > 0 else None


def _known(settings: Settings, place: Placed) -> Known:
    """Ask Kafka and the migration's database, over a connection of its own."""
    kind, database = place.kind, place.database
    known = Known(members=members(settings.kafka, group_name(settings.prefix, kind.name)))
    known.ends = {
        Place(topic, partition): end
        for topic in source_topics(settings, kind, database)
        for partition, end in topics.end_offsets(settings.kafka, topic).items()
    }
    try:
        with connect.session(settings.database(database), name="status") as connection:
            control.require_prefix(connection, database, settings.prefix)
            known.recorded = recorded(connection, kind.name, database)
            migration = kind.configure(settings.migration(kind.name))
            known.work = read_work_status(connection, migration)
            known.remaining = _remaining(connection, migration)
    except HeadraceError as mistake:
        known.error = str(mistake)
    return known


def state_of(found: Recorded, *, alive: bool, topics: bool, left: int, given_up: int = 0) -> State:
    """Return the state of a migration.

    A pause by an operator has precedence over a complete run, and stays in force for the next run.
    """
    if found.failed:
        return "failed"
    if found.paused:
        return "paused"
    if found.complete:
        return "given_up" if given_up else "complete"
    if topics and found.offsets and left == 0:
        return "caught_up"
    if alive and found.throttled_by:
        return "throttled"
    return "running" if alive and found.offsets else "waiting"


def recorded(connection: psycopg.Connection[Any], name: str, database: str = "") -> Recorded:
    """Return what the database of `connection` has recorded of a migration."""
    found = read_records(connection, database or connection.info.dbname, name)
    return found.migrations.get(name, Recorded()) if found is not None else Recorded()


def _remaining(connection: psycopg.Connection[Any], migration: Migration) -> Count:
    try:
        return counting.count(connection, migration, limit_ms=_COUNT_MS)
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn):
        return Count(None)
    except Exception as error:
        # A bug in one migration must not hide the others.
        if connection.closed or isinstance(error, HeadraceError):
            raise
        raise HeadraceError(counting.failed(error), remedy=f"see `remaining` of {type(migration).__name__}") from error
