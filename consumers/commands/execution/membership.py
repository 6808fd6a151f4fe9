"""Makes this process a consumer of a migration, until it is stopped or the migration is complete."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from functools import partial

from consumers.commands.execution import process_tuning
from consumers.commands.execution.progress_bar import progress
from consumers.contract.migration import Migration
from consumers.dead_letters.given_up import WorkGivenUp, count_given_up
from consumers.delivery.registry_match import require_registry_of
from consumers.delivery.topics import source_topics
from consumers.operations import rights as consumer_rights
from consumers.runtime.assembly import consumer_of
from infra.kafka import clients
from infra.rights import kafka_rights
from infra.service import log, service_endpoints
from infra.service.service_state import KAFKA
from infra.service.signals import stop_on_signals
from infra.settings.model import Settings
from schemas.errors import Interrupted


def consume_until_stopped(
    settings: Settings, work: Migration, database: str, *, until_caught_up: bool, as_json: bool
) -> None:
    """Apply the migration's events until a signal, or until all present ones are applied; log or print the totals."""
    service_endpoints.serve(settings.metrics, {KAFKA: partial(clients.require_broker, settings.kafka)})
    overview = None
    if settings.metrics.port:
        from consumers.operations.migration_overview import MigrationOverview

        overview = MigrationOverview(work).export
    stopping = threading.Event()
    with progress(work.name, settings, type(work), database) as report:
        with kafka_rights.named(settings.kafka, lambda: consumer_rights.needed(settings, type(work), database)):
            require_registry_of(settings, source_topics(settings, work, database))
            member = consumer_of(
                settings,
                work,
                database,
                stopping=stopping,
                until_caught_up=until_caught_up,
                report=report,
                overview=overview,
            )
            process_tuning.tune()
            with stop_on_signals(stopping, overdue=member.cancel, cut=member.cut, exit_code=0):
                totals = member.run()
    if as_json:
        print(json.dumps({"migration": work.name, **asdict(totals)}))
    else:
        log.get(migration=work.name).info("stopped" if stopping.is_set() else "caught up", **asdict(totals))


def consume_until_complete(settings: Settings, work: Migration, database: str, *, as_json: bool) -> None:
    """Apply the migration's events until none can be left; raises Interrupted if stopped, and WorkGivenUp."""
    stopping = threading.Event()
    with progress(work.name, settings, type(work), database) as report:
        require_registry_of(settings, source_topics(settings, work, database))
        member = consumer_of(settings, work, database, stopping=stopping, until_complete=True, report=report)
        process_tuning.tune()
        with stop_on_signals(stopping, overdue=member.cancel, cut=member.cut):
            totals = member.run()
    if stopping.is_set():
        raise Interrupted(f"{work.name} is not complete yet")
    given_up = count_given_up(settings, work, database)
    if as_json:
        print(json.dumps({"migration": work.name, "complete": not given_up, "given_up": given_up, **asdict(totals)}))
    if given_up:
        raise WorkGivenUp(f"{work.name} has ended; {given_up:,} were given up")
    if not as_json:
        print(f"{work.name} is complete; its consumers exit at once from now on")
