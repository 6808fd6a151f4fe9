"""Builds the `headrace` command line, and is the public API for migrations of your own: the names in `__all__`.

    from headrace import Change, ChangeEvent, Cursor, Decision, Migration, Skip

Nothing else of headrace is for migrations. What an import of this module has to load is loaded when it is used.
"""

from __future__ import annotations

import errno
import os
import sys
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    import typer

    from consumers.contract.backfill import Backfill
    from consumers.contract.decisions import Change, DeadLetter, Decision, Skip
    from consumers.contract.external import Outside, Pace, WorkStatus
    from consumers.contract.migration import Cursor, Migration, Options, Shared
    from consumers.contract.suggested_index import SuggestedIndex
    from consumers.testing.author_contract import Contract
    from consumers.testing.table_case import TableCase
    from infra.rights.programs import Program
    from infra.settings.model import Settings
    from schemas.events import UNCHANGED, ChangeEvent, Op, Source

    app: typer.Typer

__all__ = [
    "UNCHANGED",
    "Backfill",
    "Change",
    "ChangeEvent",
    "Contract",
    "Cursor",
    "DeadLetter",
    "Decision",
    "Migration",
    "Op",
    "Options",
    "Outside",
    "Pace",
    "Shared",
    "Skip",
    "Source",
    "SuggestedIndex",
    "TableCase",
    "WorkStatus",
]

_MODULES: Final = {
    "consumers.contract.backfill": ("Backfill",),
    "consumers.contract.decisions": ("Change", "DeadLetter", "Decision", "Skip"),
    "consumers.contract.external": ("Outside", "Pace", "WorkStatus"),
    "consumers.contract.migration": ("Cursor", "Migration", "Options", "Shared"),
    "consumers.contract.suggested_index": ("SuggestedIndex",),
    "consumers.testing.author_contract": ("Contract",),
    "consumers.testing.table_case": ("TableCase",),
    "schemas.events": ("UNCHANGED", "ChangeEvent", "Op", "Source"),
}
"""Module → what the API has of it; infra/stubs has the same for type checkers, which read no single file."""

INTERRUPTED: Final = 130
"""Typer's exit code after Ctrl-C, as a shell reports it: 128 plus the signal's number."""

_HELP: Final = """Streams live PostgreSQL rows through Kafka into idempotent migrations, exactly once.

    Start with `headrace demo`. For your own database: `headrace init` writes the settings, `headrace check` reports
    what is missing, `headrace produce SOURCE` fills the topics, `headrace consume MIGRATION` applies a migration, and
    `headrace status` shows the progress. Stop any of them at any time: it resumes where it stopped.

    Exit codes: 0 ok, 1 failed, 2 usage, 3 refused for safety.
    """

if not TYPE_CHECKING:  # a type checker would accept every name

    def __getattr__(name: str) -> object:
        if name == "app":
            return _command_line()
        for module, names in _MODULES.items():
            if name in names:
                return getattr(import_module(module), name)
        raise AttributeError(f"module 'headrace' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


def programs(settings: Settings) -> list[Program]:
    """Return the services of these settings, each with the rights that it needs."""
    import consumers.operations.rights
    import producers.source.rights

    return [*producers.source.rights.programs(settings), *consumers.operations.rights.programs(settings)]


@cache
def _command_line() -> typer.Typer:
    import typer

    import consumers.commands.consume
    import consumers.operations.check
    import infra.demo.demo_command
    import infra.init.init_command
    import infra.schema_registry.schema_registry_command
    import infra.stack.up_command
    import producers.commands.produce

    built = typer.Typer(
        name="headrace", help=_HELP, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown"
    )

    @built.callback()
    def options(
        _version: bool = typer.Option(
            False, "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ) -> None:
        pass

    for commands in (
        infra.demo.demo_command.COMMANDS,
        infra.stack.up_command.COMMANDS,
        infra.init.init_command.commands(programs),
        producers.commands.produce.commands(consumers.operations.check.advise),
        consumers.commands.consume.COMMANDS,
        infra.schema_registry.schema_registry_command.COMMANDS,
    ):
        for command in commands:
            built.command(name=command.__name__.rstrip("_").replace("_", "-"))(command)
    for name, subcommands in consumers.commands.consume.GROUPS.items():
        built.add_typer(subcommands, name=name)
    return built


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        import typer

        typer.echo(f"headrace {version('headrace')}")
        raise typer.Exit


def main() -> None:
    """Run the command line; every error a user can meet is one line on standard error, and what it shows after that."""
    import typer
    from typer.exceptions import TyperException

    from schemas.errors import HeadraceError

    try:
        sys.exit(_run())
    except HeadraceError as error:
        _fail(str(error), error.exit_code, error.shown)
    except TyperException as error:
        path = getattr(getattr(error, "ctx", None), "command_path", "headrace")
        _fail(f"{' '.join(error.format_message().split()).rstrip('.')}; see `{path} --help`", error.exit_code)
    except typer.Abort:
        _fail("not confirmed; nothing was changed", 1)
    except BrokenPipeError:
        # The reader of our output is gone: there is nowhere to report to.
        _drop_output()
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _drop_output()
        _fail(f"no space left to write {error.filename or 'the output'}; free some space, then run it again", 1)


def _run() -> int:
    try:
        code = _command_line()(sys.argv[1:] or ["--help"], prog_name="headrace", standalone_mode=False)
    finally:
        # Flushed here, not when Python exits, so that a failed write is still reported. With `>&-` stdout is None.
        if sys.stdout is not None:
            sys.stdout.flush()
    if code == INTERRUPTED:
        print("headrace: stopped; start it again to continue", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _fail(message: str, exit_code: int, shown: tuple[str, ...] = ()) -> NoReturn:
    from schemas.errors import printable

    print("\n".join([f"headrace: error: {printable(message)}", *map(printable, shown)]), file=sys.stderr)
    sys.exit(exit_code)


def _drop_output() -> None:
    """Keep Python from reporting standard output again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
