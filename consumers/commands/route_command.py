"""`headrace route`: prints the nodes to ask for a repository while `rehash_moves` moves repositories."""

from __future__ import annotations

import json as jsonlib
import threading
from typing import TYPE_CHECKING, Annotated, Final

import typer

from infra.cli.options import Config, Json
from schemas.errors import UsageError

if TYPE_CHECKING:
    from consumers.routing.route_server import RouteServer
    from infra.settings.model import Settings

_GITLAB_SCHEMA: Final = "gitserver"


def route(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Repositories, such as github.com/a/b.")
    ] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Serve GET /homes?name=NAME over HTTP.")] = False,
    address: Annotated[str, typer.Option("--address", help="The address that --serve listens on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", help="The port of --serve; 0 chooses a free one.", min=0, max=65535)
    ] = 7878,
    database: Annotated[
        str | None, typer.Option("--database", metavar="NAME", help="The database with the cursors.")
    ] = None,
    json: Json = False,
    config: Config = None,
) -> None:
    """Print the nodes to ask for a repository, in order.

        headrace route github.com/gitlab-org/gitlab

    Prints one node, or two: ask the second only if the first does not have the repository. With --serve it answers over
    HTTP until it is stopped, for readers in any language: GET /homes?name=github.com%2Fa%2Fb. The contract is in
    docs/how-to/routing.md.
    """
    if serve == bool(names):
        raise UsageError("give either names of repositories or --serve", remedy="see `headrace route --help`")
    from consumers.routing.lookup import Database, Router
    from infra.service import log
    from infra.settings.file import load_settings

    settings = load_settings(config)
    log.configure(settings.log)
    cursors = settings.database(database or _owner(settings)).address
    asked = Database(cursors)
    try:
        asked.ask()  # so that a mistake in the settings is an error at the start, and not in each answer
    finally:
        asked.close()
    with Router(cursors, settings.gitserver) as router:
        if serve:
            from consumers.routing.route_server import RouteServer

            _serve(RouteServer(address, port, router))
        for name in names or ():
            homes = router.homes(name)
            typer.echo(jsonlib.dumps({"name": name, "homes": homes}) if json else "\t".join((name, *homes)))


def _owner(settings: Settings) -> str:
    """Return the database that owns the gitlab schema of the cursors; where several list it, by their own rows."""
    listed = [name for name, section in settings.databases.items() if _GITLAB_SCHEMA in section.gitlab_schemas]
    if not listed:
        raise UsageError(
            f"no database in the settings lists the gitlab schema {_GITLAB_SCHEMA}",
            remedy="add it to gitlab_schemas of the database that rehash_moves writes, or give --database",
        )
    if len(listed) == 1:
        return listed[0]
    from consumers.ledger.owner_lookup import owning_database

    return owning_database(settings, listed, _GITLAB_SCHEMA) or listed[0]


def _serve(server: RouteServer) -> None:
    from infra.service import log
    from infra.service.signals import stop_on_signals

    with server, stop_on_signals(exit_code=0) as stop:
        answering = threading.Thread(target=server.serve_forever, name="route", daemon=True)
        answering.start()
        log.get().info("listening", address=str(server.server_address[0]), port=server.port)
        stop.wait()
        server.shutdown()
