"""Assembles a consumer: creates its Kafka and schema registry clients and its other parts."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import partial

from consumers.contract import contract_checks
from consumers.contract.declarations import declared
from consumers.contract.migration import Migration
from consumers.delivery.dead_letter_topic import DeadLetterWriter
from consumers.delivery.group import Group
from consumers.delivery.topics import not_captured, schemas_of, source_topics
from consumers.ledger.owner_lookup import require_not_elsewhere
from consumers.ledger.progress import Entry, Ledger, Place, member_name
from consumers.ledger.target import Connection, Target
from consumers.pace.pacing import Pacing
from consumers.planning.effect_traces import effect_traces
from consumers.planning.planner import Planner
from consumers.runtime.catch_up import Ends
from consumers.runtime.circuit_breaker import CircuitBreaker
from consumers.runtime.completion import Completion
from consumers.runtime.consumer import Consumer, Overview
from consumers.runtime.external_driver import Working
from consumers.runtime.ledger_positions import LedgerPositions
from consumers.runtime.parts import Parts
from consumers.runtime.throttle import Throttle
from consumers.runtime.totals import Report
from infra.postgres.connect import translated
from infra.postgres.control import ensure_control_schema
from infra.schema_registry.topic_registry import open_registry
from infra.settings.model import Settings
from schemas.topics import group_name


def consumer_of(
    settings: Settings,
    migration: Migration,
    database: str,
    *,
    stopping: threading.Event,
    until_caught_up: bool = False,
    until_complete: bool = False,
    report: Report | None = None,
    overview: Overview | None = None,
) -> Consumer:
    """Return a consumer of `migration` that runs until it is stopped, caught up or complete; see Consumer."""
    parts = assembled(settings, migration, database, stopping, ends=until_caught_up or until_complete)
    ends = partial(Ends, settings.kafka, parts.topics) if until_caught_up else None
    return Consumer(parts, stopping, ends=ends, until_complete=until_complete, report=report, overview=overview)


def assembled(
    settings: Settings, migration: Migration, database: str, stopping: threading.Event, *, ends: bool
) -> Parts:
    """Return the parts of a consumer; `ends` is false for a service."""
    section, target_settings = settings.migration(migration.name), settings.database(database)
    topics = source_topics(settings, migration, database)
    planner = Planner(migration, schemas_of(open_registry(settings), stopping), database)
    ledger = Ledger(migration.name, migration.gitlab_schema, member_name(), declared(migration))

    def assigned(places: Sequence[Place]) -> Mapping[Place, Entry]:
        return positions.assigned(places)

    group = Group(settings.kafka, group_name(settings.prefix, migration.name), assigned=assigned, stopping=stopping)
    target = Target(
        target_settings.address,
        database=database,
        migration=migration.name,
        stopping=stopping,
        wait=group.wait,
        search_path=target_settings.search_path,
        missed=partial(require_not_elsewhere, settings, database, migration.gitlab_schema),
    )

    def prepare(connection: Connection) -> None:
        with translated(target_settings.address):
            ensure_control_schema(
                connection, database, target_settings.gitlab_schemas, migration.own_tables, prefix=settings.prefix
            )
        contract_checks.validate(migration, connection)

    positions = LedgerPositions(settings.kafka, group, ledger, target, planner, stopping)
    return Parts(
        migration=migration,
        database=database,
        topics=topics,
        planner=planner,
        ledger=ledger,
        group=group,
        target=target,
        positions=positions,
        dead_letter_writer=DeadLetterWriter(settings, migration.name, database),
        pacing=Pacing(section),
        breaker=CircuitBreaker(migration.name, target, group, ends=ends),
        throttle=Throttle(section, migration, member_name()),
        working=Working(settings, migration, database),
        completion=Completion(settings, migration, database, topics, ledger, stopping),
        prepare=prepare,
        not_captured=not_captured(settings, migration, database),
        traces=effect_traces(settings.traces, migration.name, database),
    )
