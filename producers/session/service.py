"""Runs a source's producer as a service: one session after another until it is stopped, with pauses for servers."""

from __future__ import annotations

import os
import socket
import threading
import uuid
from typing import Final

from infra.kafka import clients
from infra.service import interrupts, log
from infra.service.service_state import DATABASE, HANDOVER, KAFKA, THIS
from infra.settings.model import Settings
from producers.session import handover, opening
from producers.session.commits import Restart
from producers.session.loop import USUAL, Timing
from producers.session.opening import Start
from producers.session.slot_monitor import slot_monitor_of
from producers.source import gaps
from producers.stream.connection import PublicationMissing
from schemas.errors import BrokerUnavailable, DatabaseUnavailable, Interrupted, Unavailable

_BACKOFF: Final = (0.5, 1, 2, 5, 10)
"""Seconds until the next session after the first one that a server ended, the second, …"""


def produce(settings: Settings, source: str, stop: threading.Event, timing: Timing | None = None) -> None:
    """Run the producer of `source` until `stop` is set.

    Waits for a server that stops answering: Kafka once a broker has answered, the database once a session was opened.
    Also waits for the producer of a database that gave its tables to this one. Raises preflight's errors, Fenced when
    another producer took over, and OwnershipMoved when the database has given all its tables away.
    """
    instance = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
    lines = log.get(**{log.SOURCE: source})
    slot_monitor = slot_monitor_of(settings, source, lines)
    clients.ensure_reachable(settings.kafka)
    attempt = 0
    worked = False
    unfit: set[str] = set()
    while not stop.is_set():
        THIS.rest()
        start = Start(
            settings,
            source,
            instance,
            stop,
            slot_monitor,
            successor_ends_it=worked,
            unfit=unfit,
            timing=timing or USUAL,
        )
        try:
            with opening.open_session(start) as session:
                if isinstance(session, Restart):
                    unfit |= {session.table} if session.table else set()
                    restart: Restart | None = session
                else:
                    worked, attempt = True, 0
                    unfit.clear()
                    THIS.working()
                    with interrupts.finishing():  # what was read is committed
                        restart = session.work()
            if restart is not None:
                _log_restart(lines, restart)
        except Interrupted:
            break
        except PublicationMissing as error:
            raise gaps.publication_gap(source, settings.database(source).publication, "was dropped") from error
        except Unavailable as error:
            awaited = isinstance(error, handover.HandoverAwaited)
            if not worked and not awaited and not isinstance(error, BrokerUnavailable):
                raise
            THIS.away(_what(error), error.problem)
            pause = _BACKOFF[min(attempt, 1 if awaited else len(_BACKOFF) - 1)]
            lines.warning("waiting for a server", **{log.REASON: error.problem}, seconds=pause)
            attempt += 1
            if not isinstance(error, DatabaseUnavailable):
                slot_monitor.look_over_new_connection(settings.database(source).address)
            stop.wait(pause)
    lines.info("stopped")


def _what(error: Unavailable) -> str:
    """Return what a source waits for."""
    if isinstance(error, BrokerUnavailable):
        return KAFKA
    return DATABASE if isinstance(error, DatabaseUnavailable) else HANDOVER


def _log_restart(lines: log.Log, restart: Restart) -> None:
    of_table = {} if restart.table is None else {log.TABLE: restart.table}
    lines.info("session restarting", **of_table, **{log.REASON: restart.reason})
