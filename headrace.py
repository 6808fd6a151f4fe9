"""headrace: moves live data through Kafka while people keep using it. This file only puts the commands together."""

from __future__ import annotations

import os
import sys

import typer

import consumers.cli
import infra.demo.cli
import infra.init.cli
import infra.stack.cli
import producers.cli
from schemas.errors import HeadraceError

app = typer.Typer(
    name="headrace",
    help="""Streams live PostgreSQL rows through Kafka into idempotent migrations, exactly once.

    Start with `headrace demo`. For your own database: `headrace init` writes the settings, `headrace check` says what
    is missing, `headrace produce SOURCE` fills the topics, `headrace consume MIGRATION` applies a migration, and
    `headrace status` shows how far everything is. Stop any of them at any moment: it goes on where it was.

    Exit codes: 0 ok, 1 failed, 2 usage, 3 refused for safety.
    """,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

for group in (infra.demo.cli, infra.stack.cli, infra.init.cli, producers.cli, consumers.cli):
    for command in group.COMMANDS:
        app.command()(command)


def main() -> None:
    """Run the command line; every error a user can meet is one line on standard error."""
    try:
        app()
    except HeadraceError as error:
        print(f"headrace: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("headrace: stopped; start it again to go on", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has gone; Python must not complain about it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
