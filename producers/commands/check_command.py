"""The command `headrace check`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from infra.cli.options import Config, Json

if TYPE_CHECKING:
    from infra.cli.advice import Adviser


def check_with(advise: Adviser) -> Callable[..., None]:
    """Return the command; `advise` returns problems of the migrations and possible improvements."""

    def check(
        names: Annotated[
            list[str] | None,
            typer.Argument(metavar="[SOURCE|MIGRATION]...", help="Check only these.", show_default=False),
        ] = None,
        config: Config = None,
        json: Json = False,
    ) -> None:
        """Report what sources and migrations need before they can run.

            headrace check main skip_resets

        Changes nothing. Exit code 3 when something is missing. If producers and consumers have separate roles and
        principals, run it as each, with the names of the sources and migrations that it runs.

        For a source that cannot resume it reports the reason and the remedy; for each slot the WAL that it retains, and
        when it is lost if nothing reads it; for each migration what prevents it from running, such as an error in its
        file, an unknown setting or a table that is not captured, and an index that would make it faster; for a table
        that another database owns whether it was written here, and whether the guard rejects writes.
        """
        from producers.commands.examination import report

        report(advise, names or [], config, as_json=json)

    return check
