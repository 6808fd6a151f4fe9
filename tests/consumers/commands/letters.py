"""Migrations whose dead letters are tested, and `headrace dead-letters` as a process that dies at a given point.

Run as `python -m tests.consumers.commands.letters SETTINGS POINT COMMAND…`; POINT is one of POINTS, or "nowhere".
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from consumers.commands import dead_letters_command
from consumers.contract.decisions import Change
from consumers.contract.migration import Cursor, Shared
from consumers.dead_letters import settle
from consumers.delivery.dead_letter_topic import DeadLetterWriter
from consumers.migrations.skip_resets import SkipResets
from consumers.operations import catalog
from consumers.testing.waiting import until
from schemas.errors import HeadraceError
from tests.consumers.known_migrations import catalog_of
from tests.consumers.services import ROOT


class Unguarded(SkipResets):
    """Writes any row, so that each call is in the log of writes."""

    def apply(self, cursor: Cursor, changes: Sequence[Change]) -> int:
        keys = [change.key for change in changes]
        cursor.execute(
            "UPDATE public.container_repositories SET migration_state = 'default' WHERE id = ANY(%s)", (keys,)
        )
        return cursor.rowcount


class OfEach(Unguarded):
    """Works on a table that every database has, once per database."""

    gitlab_schema = "gitlab_shared"
    shared = Shared.PER_DATABASE


def start(config: Path, *arguments: str, point: str = "nowhere") -> subprocess.Popen[str]:
    """Start `headrace dead-letters` for `Unguarded`; kill it and wait for it when done."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.consumers.commands.letters", str(config), point, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until_stopped(process: subprocess.Popen[str]) -> None:
    """Wait until a process is stopped by SIGSTOP."""

    def stopped() -> bool:
        assert process.poll() is None, process.communicate()
        return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    until(stopped, "the process is stopped")


def main(config: str, point: str, *arguments: str) -> None:
    """Run the command, as `headrace` would."""
    vars(catalog).update(catalog_of({"skip_resets": Unguarded}))
    if point != "nowhere":
        POINTS[point]()
    try:
        dead_letters_command.app([*arguments, "--config", config], standalone_mode=False)
    except HeadraceError as error:
        print(f"headrace: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _before(place: Any, name: str) -> Callable[[], None]:
    return lambda: setattr(place, name, _die)


def _after(place: Any, name: str) -> Callable[[], None]:
    real = getattr(place, name)

    def dying(*arguments: Any, **options: Any) -> None:
        real(*arguments, **options)
        _die()

    return lambda: setattr(place, name, dying)


def _stop_after(place: Any, name: str) -> Callable[[], None]:
    real = getattr(place, name)

    def stopping(*arguments: Any, **options: Any) -> Any:
        found = real(*arguments, **options)
        os.kill(os.getpid(), signal.SIGSTOP)
        return found

    return lambda: setattr(place, name, stopping)


POINTS: Final[dict[str, Callable[[], None]]] = {
    "stops once it has read them": _stop_after(settle, "chosen"),
    "before the commit": _after(Unguarded, "apply"),
    "after the commit": _after(settle._Settler, "settle"),
    "before the events are removed": _before(DeadLetterWriter, "remove"),
    "after the events are removed": _after(DeadLetterWriter, "remove"),
}

if __name__ == "__main__":
    main(*sys.argv[1:])
