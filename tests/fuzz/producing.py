"""The producer of a round: a process of its own, forked from one that has everything imported, to be killed at will."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any, Final

from infra.settings import Settings

_FORKS: Final = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["headrace", __name__])

_TUNES: Final[dict[str, Any]] = {"producers.producer:_HEARTBEAT_SECONDS": 0.3, "producers.producer:_COPY_SECONDS": 0.3}
"""What comes every few seconds comes several times in a round."""


class Producer:
    """`headrace produce main`, as far as its settings are given."""

    def __init__(self, settings: Settings, log: Path) -> None:
        self.log = log
        log.touch()
        self._process = _FORKS.Process(target=_produce, args=(settings, log))
        self._process.start()

    @property
    def ended(self) -> str | None:
        """What it said last, where it ended by itself."""
        if self._process.exitcode is None:
            return None
        return f"it ended with {self._process.exitcode}: {self.last_words}"

    @property
    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        return lines[-1] if lines else ""

    def stop(self, seconds: float) -> bool:
        """Stop it in order; return whether it did."""
        if self._process.exitcode is None:
            assert self._process.pid is not None
            os.kill(self._process.pid, signal.SIGTERM)
        self._process.join(seconds)
        return self._process.exitcode is not None

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()


def _produce(settings: Settings, log: Path) -> None:
    from infra import log as lines  # noqa: PLC0415  # imported once, in the process that this one is forked from
    from infra.stopping import stop_on_signals  # noqa: PLC0415
    from producers.service import produce  # noqa: PLC0415
    from schemas.errors import HeadraceError  # noqa: PLC0415

    with log.open("a") as output:
        os.dup2(output.fileno(), sys.stdout.fileno())
        os.dup2(output.fileno(), sys.stderr.fileno())
    for name, value in _TUNES.items():
        module, _, constant = name.partition(":")
        setattr(importlib.import_module(module), constant, value)
    lines.configure()
    try:
        with stop_on_signals() as stop:
            produce(settings, "main", stop)
    except HeadraceError as error:
        sys.exit(f"headrace: error: {error}")
