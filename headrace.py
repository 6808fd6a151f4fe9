"""Builds the `headrace` command line from the commands of infra, producers and consumers."""

from __future__ import annotations

import errno
import os
import sys
from importlib.metadata import version
from typing import Annotated, Final, NoReturn

import typer
from typer.exceptions import TyperException

import consumers.commands.consume
import consumers.operations.check
import consumers.operations.rights
import infra.demo.demo_command
import infra.init.init_command
import infra.schema_registry.schema_registry_command
import infra.stack.up_command
import producers.commands.produce
import producers.source.rights
from infra.rights.programs import Program
from infra.settings.model import Settings
from schemas.errors import HeadraceError, printable

INTERRUPTED: Final = 130
"""Typer's exit code after Ctrl-C, as a shell reports it: 128 plus the signal's number."""

app = typer.Typer(
    name="headrace",
    help="""Streams live PostgreSQL rows through Kafka into idempotent migrations, exactly once.

    Start with `headrace demo`. For your own database: `headrace init` writes the settings, `headrace check` reports
    what is missing, `headrace produce SOURCE` fills the topics, `headrace consume MIGRATION` applies a migration, and
    `headrace status` shows the progress. Stop any of them at any time: it resumes where it stopped.

    Exit codes: 0 ok, 1 failed, 2 usage, 3 refused for safety.
    """,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def programs(settings: Settings) -> list[Program]:
    """Return the services of these settings, each with the rights that it needs."""
    return [*producers.source.rights.programs(settings), *consumers.operations.rights.programs(settings)]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"headrace {version('headrace')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
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
        app.command()(command)
for name, subcommands in consumers.commands.consume.GROUPS.items():
    app.add_typer(subcommands, name=name)


def main() -> None:
    """Run the command line; every error a user can meet is one line on standard error, and what it shows after that."""
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
        code = app(sys.argv[1:] or ["--help"], prog_name="headrace", standalone_mode=False)
    finally:
        # Flushed here, not when Python exits, so that a failed write is still reported. With `>&-` stdout is None.
        if sys.stdout is not None:
            sys.stdout.flush()
    if code == INTERRUPTED:
        print("headrace: stopped; start it again to continue", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _fail(message: str, exit_code: int, shown: tuple[str, ...] = ()) -> NoReturn:
    print("\n".join([f"headrace: error: {printable(message)}", *map(printable, shown)]), file=sys.stderr)
    sys.exit(exit_code)


def _drop_output() -> None:
    """Keep Python from reporting standard output again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
