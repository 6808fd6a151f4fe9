"""Builds the `headrace` command line, and is the public API for migrations of your own: the names in `__all__`.

    from headrace import Change, ChangeEvent, Cursor, Decision, Migration, Skip

Nothing else of headrace is for migrations. What an import of this module has to load is loaded when it is used.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    import typer

    from consumers.contract.backfill import Backfill
    from consumers.contract.decisions import Change, DeadLetter, Decision, Skip
    from consumers.contract.external import Outside, Pace, WorkStatus
    from consumers.contract.migration import Cursor, Migration, Options, Shared
    from consumers.contract.suggested_index import SuggestedIndex
    from consumers.testing.author_contract import Contract
    from consumers.testing.table_case import TableCase
    from infra.cli.advice import Advice
    from infra.cli.lazy_commands import Listed
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

VERBOSE: Final = "--verbose"

_HELP: Final = """Streams live PostgreSQL rows through Kafka into idempotent migrations, exactly once.

    Start with `headrace demo`. For your own database: `headrace init` writes the settings, `headrace check` reports
    what is missing, `headrace produce SOURCE` fills the topics, `headrace consume MIGRATION` applies a migration, and
    `headrace status` shows the progress. Stop any of them at any time: it resumes where it stopped.

    Exit codes: 0 ok, 1 failed, 2 usage, 3 refused for safety.
    """

COMMANDS: Final = {
    "demo": ("Run all migrations on temporary servers, with proofs.", "infra.demo.demo_command:demo"),
    "up": ("Start Kafka and PostgreSQL in the background.", "infra.stack.up_command:up_with"),
    "down": ("Stop the servers of `headrace up`; keep their data.", "infra.stack.up_command:down"),
    "init": ("Write a settings file, or print its SQL or Kafka ACLs.", "infra.init.init_command:init_with"),
    "produce": ("Stream a database, or walk a virtual storage, into Kafka.", "producers.commands.produce:produce"),
    "check": (
        "Report what sources and migrations need before they can run.",
        "producers.commands.check_command:check_with",
    ),
    "snapshot": ("Re-snapshot a table, or a range of its keys.", "producers.commands.snapshot_command:snapshot"),
    "switchover": (
        "Move gitlab schemas to a physical standby and promote it.",
        "producers.commands.switchover_command:switchover",
    ),
    "guard": ("Reject writes to tables that another database owns.", "producers.commands.guard_command:guard"),
    "consume": ("Run a consumer of a migration until it is stopped.", "consumers.commands.consume:consume"),
    "status": ("Show the progress of every migration and source.", "consumers.commands.consume:status"),
    "migrations": ("List the migrations, and what each one does.", "consumers.commands.migrations_command:migrations"),
    "try": ("Show what a migration does with one row; write nothing.", "consumers.commands.try_command:try_"),
    "pause": ("Pause a migration; its consumers stay and wait.", "consumers.commands.consume:pause"),
    "resume": ("Resume a paused or failed migration.", "consumers.commands.consume:resume"),
    "pace": ("Change the pace of a migration while it runs.", "consumers.commands.consume:pace"),
    "replay": ("Start a new run of a migration over its topics.", "consumers.commands.consume:replay"),
    "verify": ("Count the rows that a migration has left to change.", "consumers.commands.consume:verify"),
    "finalize": ("Run a consumer until the migration is complete.", "consumers.commands.consume:finalize"),
    "cleanup": ("List or remove records that a switchover left behind.", "consumers.commands.cleanup_command:cleanup"),
    "history": ("Show what operators did, and why.", "infra.state.history_command:history"),
    "report": ("Write a report of a run as one HTML file.", "consumers.commands.report_command:report"),
    "place": ("Print the gitserver node of each repository.", "consumers.commands.place_command:place"),
    "route": ("Print the nodes to ask for a repository, in order.", "consumers.commands.route_command:route"),
    "schema-registry": (
        "Serve the schemas topic as a read-only registry.",
        "infra.schema_registry.schema_registry_command:schema_registry",
    ),
    "dead-letters": (
        "List, retry or discard a migration's dead letters.",
        "consumers.commands.dead_letters_command:app",
    ),
    "schema": ("Add a NOT NULL column without blocking, in three releases.", "consumers.commands.schema_command:app"),
    "web": ("Serve the console: one live page about everything.", "consumers.web.web_command:web"),
    "new": ("Write a migration of your own.", "consumers.commands.new_command:app"),
    "config": ("Check, show or describe the settings file.", "consumers.commands.config_command:app"),
    "completion": (
        "Print a script that completes commands and options.",
        "infra.cli.completion_command:completion_with",
    ),
}
"""Command or group → its summary, and `module:name` of its function or typer.Typer; in the order of the help."""

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


def advise(settings: Settings, names: Collection[str]) -> Iterable[Advice]:
    """Yield advice about these migrations, or about all."""
    from consumers.operations.check import advise

    return advise(settings, names)


def load_sample(dsn: str) -> Sequence[str]:
    """Create the demo's tables in this database; return their names."""
    from infra.demo.sample_database import load

    return load(dsn)


def names(settings: Settings) -> dict[str, list[str]]:
    """Return what an argument is in the help → the names that these settings have for it, sorted."""
    from consumers.operations.catalog import migrations
    from schemas.gitlab_schemas import PER_DATABASE

    labels = {label for database in settings.databases.values() for label in database.gitlab_schemas}
    return {
        "MIGRATION": sorted(migrations(settings)),
        "SOURCE": sorted([*settings.databases, *settings.virtual_storages]),
        "DATABASE": sorted(settings.databases),
        "SCHEMA": sorted(labels - PER_DATABASE),  # each database has its own of those: they are never moved
    }


def listed() -> dict[str, Listed]:
    """Return every command and group by name, in the order of the help; imports none of them."""
    from infra.cli.lazy_commands import Listed

    # What these are about is in packages that theirs may not import.
    given = {"up": load_sample, "init": programs, "check": advise, "completion": names}

    def loader(name: str, place: str) -> Callable[[], Any]:
        def load() -> Any:
            module, _, attribute = place.partition(":")
            found = getattr(import_module(module), attribute)
            return found(given[name]) if name in given else found

        return load

    return {name: Listed(summary, loader(name, place)) for name, (summary, place) in COMMANDS.items()}


@cache
def _command_line() -> typer.Typer:
    import typer

    from infra.cli.lazy_commands import APPEARANCE, lazy_group

    built = typer.Typer(name="headrace", help=_HELP, cls=lazy_group(listed()), **APPEARANCE)

    @built.callback()
    def options(
        _version: bool = typer.Option(
            False, "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
        _verbose: bool = typer.Option(
            False, VERBOSE, callback=_log_everything, is_eager=True, help="Log everything; also after the command."
        ),
    ) -> None:
        pass

    return built


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        import typer

        typer.echo(f"headrace {version('headrace')}")
        raise typer.Exit


def _log_everything(wanted: bool) -> None:
    if wanted:
        # The variable of the setting log.level: it wins over the file, and processes that a command starts have it too.
        os.environ["HEADRACE_LOG__LEVEL"] = "debug"


def _arguments() -> list[str]:
    """Return the command's arguments, with `--verbose` first wherever it is."""
    given = sys.argv[1:]
    if VERBOSE in (options := given[: given.index("--")] if "--" in given else given):
        return [VERBOSE, *(each for each in options if each != VERBOSE), *given[len(options) :]]
    return given


def main() -> None:
    """Run the command line; every error a user can meet is one line on standard error, and what it shows after that."""
    _start_quickly()
    from infra.service import interrupts, log

    log.to_standard_error()
    with interrupts.guarded():
        code = _code()
        if interrupts.asked():
            interrupts.leave(code)
    sys.exit(code)


def _start_quickly() -> None:
    """Leave out what takes a tenth of a start."""
    # Nearly all that imports make stays: there is little garbage to look for.
    gc.set_threshold(10_000)
    # None is headrace's own, and pydantic reads the metadata of every installed package to find them.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")


def _code() -> int:
    """Run the command line and return its exit code."""
    from typer import Abort
    from typer.exceptions import TyperException

    from infra.service.interrupts import INTERRUPTED, STOPPED, asked
    from schemas.errors import HeadraceError

    try:
        code = _run()
    except HeadraceError as error:
        return _failed(str(error), error.exit_code, error.shown)
    except TyperException as error:
        path = getattr(getattr(error, "ctx", None), "command_path", "headrace")
        return _failed(f"{' '.join(error.format_message().split()).rstrip('.')}; see `{path} --help`", error.exit_code)
    except Abort:
        return _failed("not confirmed; nothing was changed", 1)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone: there is nowhere to report to.
        _drop_output()
        return 1
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            _drop_output()
            return _failed(
                f"no space left to write {error.filename or 'the output'}; free some space, then run it again", 1
            )
        if not asked(seconds=0.5):
            raise
        # Libraries in C replace a KeyboardInterrupt that meets them: confluent-kafka, while it converts arguments, by a
        # ValueError, TypeError or SystemError.
        code = INTERRUPTED
    if code == INTERRUPTED:
        print(STOPPED, file=sys.stderr)
    return code


def _run() -> int:
    try:
        code = _command_line()(_arguments() or ["--help"], prog_name="headrace", standalone_mode=False)
    finally:
        # Flushed here, not when Python exits, so that a failed write is still reported. With `>&-` stdout is None.
        if sys.stdout is not None:
            sys.stdout.flush()
    return code if isinstance(code, int) else 0


def _failed(message: str, exit_code: int, shown: tuple[str, ...] = ()) -> int:
    from schemas.errors import printable

    print("\n".join([f"headrace: error: {printable(message)}", *map(printable, shown)]), file=sys.stderr)
    return exit_code


def _drop_output() -> None:
    """Keep Python from reporting standard output again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
