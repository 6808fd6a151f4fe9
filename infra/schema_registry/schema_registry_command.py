"""`headrace schema-registry`: serves the schemas topic to programs that need a registry."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Annotated, Final

import typer

from infra.cli.listening import listen_address
from infra.cli.options import Config
from schemas.errors import UsageError

if TYPE_CHECKING:
    from infra.settings.model import Settings

_FIRST_READ_SECONDS: Final = 60.0


def schema_registry(
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Where to listen; port 0 chooses a free one.")
    ] = "127.0.0.1:8081",
    hosts: Annotated[
        list[str] | None,
        typer.Option("--host", metavar="NAME", help="Another host name that clients use.", show_default=False),
    ] = None,
    config: Config = None,
) -> None:
    """Serve the schemas topic as a read-only registry.

        headrace schema-registry --listen 127.0.0.1:8081

    For programs that decode headrace's records with a Confluent-compatible registry, where registry.url is empty and
    schemas are in the topic PREFIX.schemas. It follows the topic, writes nothing, and has no authentication. Ctrl-C
    or SIGTERM stops it.
    """
    from infra.kafka import clients
    from infra.service import log
    from infra.settings.file import load_settings

    address, port = listen_address(listen)
    settings = load_settings(config)
    if settings.registry.url:
        raise UsageError(
            "registry.url is set, so schemas are in that registry and not in a topic",
            remedy="let the other programs ask that registry",
        )
    log.configure(settings.log)
    clients.ensure_reachable(settings.kafka)
    _serve(settings, address, port, hosts or [])


def _serve(settings: Settings, address: str, port: int, hosts: list[str]) -> None:
    from infra.kafka.topics import LogReader
    from infra.schema_registry.read_only_server import ReadOnlyRegistry
    from infra.schema_registry.subjects import FollowedSubjects
    from infra.schema_registry.topic_registry import registrations
    from infra.service import log
    from infra.service.signals import stop_on_signals
    from schemas.topics import schemas_topic

    topic = schemas_topic(settings.prefix)
    reader = LogReader(settings.kafka, topic)
    subjects = FollowedSubjects(lambda: registrations(reader, topic))
    try:
        with ReadOnlyRegistry(address, port, subjects, hosts) as server, stop_on_signals(exit_code=0) as stop:
            subjects.refresh(seconds=_FIRST_READ_SECONDS)
            answering = threading.Thread(target=server.serve_forever, name="schema registry", daemon=True)
            answering.start()
            known = subjects.ask(lambda found: len(found.names()))
            log.get().info("listening", address=address, port=server.port, topic=topic, subjects=known)
            stop.wait()
            server.shutdown()
    finally:
        subjects.close()
