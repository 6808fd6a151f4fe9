"""Lists commands by name and summary, and imports the module of a command only when that one is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from infra.service.terminal import help_markup


def appearance() -> Mapping[str, Any]:
    """Return the arguments of every typer.Typer of the command line, for this terminal."""
    return {"add_completion": False, "pretty_exceptions_enable": False, "rich_markup_mode": help_markup()}


@dataclass(frozen=True, slots=True)
class Listed:
    """A command, or a group of them, before its module is imported.

    `summary` is the first line of its help. `load` imports and returns it.
    """

    summary: str
    load: Callable[[], Callable[..., None] | typer.Typer]


def lazy_group(table: Mapping[str, Listed]) -> type[TyperGroup]:
    """Return a class of groups, for `typer.Typer(cls=...)`, with the commands of `table` in its order."""

    class LazyGroup(TyperGroup):
        def __init__(self, **attributes: Any) -> None:
            super().__init__(**attributes)
            # For help, completion and suggestions.
            self.commands = {name: TyperCommand(name=name, help=each.summary) for name, each in table.items()}

        def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
            name, command, rest = super().resolve_command(ctx, args)
            return name, command if name is None else loaded(name, table[name]), rest

    return LazyGroup


def loaded(name: str, listed: Listed) -> TyperCommand | TyperGroup:
    """Return the command as typer runs it."""
    command = listed.load()
    parent = typer.Typer(**appearance())
    if isinstance(command, typer.Typer):
        parent.add_typer(command, name=name)
    else:
        parent.command(name)(command)
    found = typer.main.get_group(parent).commands[name]
    assert isinstance(found, TyperCommand | TyperGroup)
    return found
