"""Every command and group of the command line, as typer has them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import typer

import headrace

ROOT: Final = typer.main.get_group(headrace.app)


def paths(command: Any = ROOT, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words of every command and group, a group before its commands."""
    yield at
    if isinstance(command, typer.core.TyperGroup):
        context = command.make_context("headrace", [], resilient_parsing=True)
        for name in command.list_commands(context):
            yield from paths(command.resolve_command(context, [name])[1], (*at, name))


def command_of(words: tuple[str, ...]) -> Any:
    """Return the command or group of these words."""
    command: Any = ROOT
    for word in words:
        command = command.resolve_command(command.make_context("headrace", [], resilient_parsing=True), [word])[1]
    return command
