"""Command → the model of what it prints with --json: a field that is renamed, added or of another type is found."""

from __future__ import annotations

from typing import Any, Final

from pydantic import TypeAdapter

from consumers.web.documents import Paced
from tests import authoring_document_models as authoring
from tests import document_models as models

DOCUMENTS: Final[dict[str, Any]] = {
    "check": models.Check,
    "cleanup": models.Cleanup,
    "config check": authoring.Checked,
    "config show": authoring.Shown,
    "consume": models.Totals | models.DryRun,
    "dead-letters discard": models.Settled,
    "dead-letters list": models.DeadLetters,
    "dead-letters retry": models.Retried,
    "down": models.Down,
    "finalize": models.Finalized,
    "guard": models.Guarded | models.Unguarded,
    "history": models.Recorded,
    "migrations": models.Migrations,
    "new backfill": authoring.Added,
    "new migration": authoring.Written,
    "pace": Paced,
    "pause": models.Paused,
    "replay": models.Replay,
    "report": models.Reported,
    "resume": models.Paused,
    "route": models.Route,
    "schema backfill": models.Filled | models.Withdrawn,
    "schema contract": models.Executed,
    "schema expand": models.Executed,
    "snapshot": models.Requested,
    "status": models.Status,
    "switchover": models.Switchover,
    "try": authoring.Tried,
    "up": models.Up,
    "verify": models.Verified | list[models.Compared],
}
"""Command → the model of its document."""

WITHOUT: Final = {
    "completion": "prints a script",
    "config schema": "prints JSON anyway",
    "demo": "prints its story",
    "init": "writes or prints files for other programs",
    "place": "prints a line for each of millions of names",
    "produce": "a service, whose log is JSON",
    "schema-registry": "a service, whose log is JSON",
    "web": "a service, whose log is JSON",
}
"""Commands without --json, with the reason."""


def hold(arguments: tuple[object, ...], printed: str) -> None:
    """Validate what a command with these arguments printed, if they ask for JSON and it printed anything."""
    words = list(map(str, arguments))
    if "--json" not in words or not printed.strip():
        return
    command = next(name for count in (2, 1) if (name := " ".join(words[:count])) in DOCUMENTS)
    for line in printed.splitlines() if command == "route" else [printed]:
        TypeAdapter(DOCUMENTS[command]).validate_json(line)
