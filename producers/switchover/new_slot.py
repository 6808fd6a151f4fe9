"""Removes an incomplete slot of a new owner's producer: a slot is usable only once its creation has ended."""

from __future__ import annotations

from typing import Any, Final

import psycopg

from producers.source import slots
from producers.switchover.step_limit import StepLimit
from schemas.errors import Refused

_POLL_SECONDS: Final = 0.05


class SlotTaken(Refused):
    """Choose another name with databases.<name>.slot, or drop the slot if nothing reads it."""


def drop_leftover(connection: psycopg.Connection[Any], slot: str, limit: StepLimit) -> None:
    """Drop an incomplete slot of an earlier switchover, and terminate the session that still creates it.

    Only one switchover runs at a time, and the slot's producer does not start before it has ended. Raises SlotTaken
    when another program owns the slot, Busy when its session does not end.
    """
    while (state := slots.read(connection, slot)) is not None:
        if state.plugin != slots.PLUGIN or state.database != connection.info.dbname:
            raise SlotTaken(f"slot {slot} already exists, with plugin {state.plugin} in database {state.database}")
        limit.waiting_for = f"the session that uses slot {slot} (process {state.active_pid}) to end"
        if state.active_pid is not None:
            connection.execute("SELECT pg_terminate_backend(%s)", (state.active_pid,))
        elif state.ready:
            return
        else:
            slots.drop(connection, slot)
        limit.pause(_POLL_SECONDS)
