"""Lists commands by name and summary, and imports the module of a command only when that one is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

from infra.cli.help_text import HelpContext
from schemas.lazy_dataclass import dataclass

APPEARANCE: Final[Mapping[str, Any]] = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
}
"""The arguments of every typer.Typer of the command line."""

_NO_HELP: Final = {"help": False}
"""The default of `--help`. Where it is None, typer imports pydantic to convert it."""


@dataclass(frozen=True)
class Listed:
    """A command, or a group of them, before its module is imported.

    `summary` is the first line of its help. `load` imports and returns it.
    """

    summary: str
    load: Callable[[], Callable[..., None] | typer.Typer]


def lazy_group(table: Mapping[str, Listed]) -> type[TyperGroup]:
    """Return a class of groups, for `typer.Typer(cls=...)`, with the commands of `table` in its order."""

    class LazyGroup(TyperGroup):
        context_class = HelpContext

        def __init__(self, **attributes: Any) -> None:
            super().__init__(**attributes)
            self.context_settings = {"default_map": {**_NO_HELP, **dict.fromkeys(table, _NO_HELP)}}
            # For help, completion and suggestions.
            self.commands = {name: TyperCommand(name=name, short_help=each.summary) for name, each in table.items()}

        def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
            name, command, rest = super().resolve_command(ctx, args)
            return name, command if name is None else loaded(name, table[name]), rest

    return LazyGroup


def loaded(name: str, listed: Listed) -> TyperCommand | TyperGroup:
    """Return the command as typer runs it."""
    command = listed.load()
    parent = typer.Typer(**APPEARANCE)
    if isinstance(command, typer.Typer):
        parent.add_typer(command, name=name)
    else:
        parent.command(name)(command)
    found = typer.main.get_group(parent).commands[name]
    assert isinstance(found, TyperCommand | TyperGroup)
    for each in (found, *(found.commands.values() if isinstance(found, TyperGroup) else ())):
        each.context_class = HelpContext
    return found
