"""The slot of a new owner's producer while it is made: usable only with a position, and with no creator at work."""

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
    """Drop what an earlier switchover left of a slot, ending its session where that still works on it.

    To be called by the one switchover that may run; the producer of the slot does not start before that has ended.
    Raises SlotTaken when the slot is another program's, Busy when its session does not end.
    """
    while (state := slots.read(connection, slot)) is not None:
        if state.plugin != slots.PLUGIN or state.database != connection.info.dbname:
            raise SlotTaken(f"slot {slot} is there already, with plugin {state.plugin} in database {state.database}")
        limit.waiting_for = f"the session that works on slot {slot} (process {state.active_pid}) to end"
        if state.active_pid is not None:
            connection.execute("SELECT pg_terminate_backend(%s)", (state.active_pid,))
        elif state.ready:
            return
        else:
            slots.drop(connection, slot)
        limit.pause(_POLL_SECONDS)
