"""Counts the rows that a migration has left, for `headrace verify`."""

from __future__ import annotations

import json
from pathlib import Path

from consumers.commands.execution.named_migration import named_migration
from consumers.dead_letters.given_up import WorkGivenUp, count_given_up
from consumers.operations.remaining import remaining
from consumers.runtime.completion import RowsLeft
from infra.postgres import connect
from infra.service.signals import stop_on_signals
from infra.settings.model import Settings
from infra.state.history import Actor, OperatorAction, record_action


def verify_migration(config: Path | None, what: str, actor: Actor, *, as_json: bool) -> None:
    """Run `headrace verify` for a migration."""
    settings, kind, target = named_migration(what, config)
    migration = kind.configure(settings.migration(what))
    with stop_on_signals() as stopping:
        left = remaining(settings, migration, target, stopping)
    given_up = count_given_up(settings, migration, target)
    record_verified(settings, target, what, actor, remaining=left, given_up=given_up)
    if as_json:
        print(json.dumps({"migration": what, "database": target, "remaining": left, "given_up": given_up}))
    elif left == 0:
        print(f"{what}: no rows are left to change in {target}")
    if left:
        raise RowsLeft(f"{what}: {left} rows are left to change in {target}")
    if given_up:
        raise WorkGivenUp(f"{what}: {given_up:,} were given up")


def record_verified(settings: Settings, database: str, subject: str, actor: Actor, **found: int) -> None:
    """Record what was found, where the database can be written."""
    with connect.session(settings.database(database), name=f"verify {subject}") as connection:
        if not connect.is_standby(connection):
            record_action(connection, OperatorAction.VERIFY, [subject], actor, if_permitted=True, **found)
