"""`headrace dead-letters`, and a migration without a guard."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from consumers.commands import dead_letters_command
from infra.service import log
from tests.consumers.commands.letters import Unguarded
from tests.consumers.delivery.dead_letters import NAME, Command
from tests.consumers.known_migrations import known_are


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """A function that runs `headrace dead-letters` with a settings file."""
    monkeypatch.setattr(log, "configure", lambda _settings: None)

    def run(config: Path, *arguments: str) -> Result:
        return CliRunner().invoke(dead_letters_command.app, [*arguments, "--config", str(config)])

    return run


@pytest.fixture
def unguarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands' migration has no guard, so that a repeated effect shows."""
    known_are(monkeypatch, {NAME: Unguarded})
