"""`headrace up` and `headrace down`: the embedded stack in the background."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infra.cli.options import Config
from infra.stack.extra import require_stack

if TYPE_CHECKING:
    from infra.stack.background import Record

Directory = Annotated[
    Path | None,
    typer.Option("--dir", help="Directory of the stack; by default in your data directory.", show_default=False),
]
Brokers = Annotated[
    int | None,
    typer.Option(help="Number of brokers: 1, 3 or 5; by default the previous one, or 1.", show_default=False),
]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
RemoveData = Annotated[bool, typer.Option("--remove-data", help="Also delete the servers' data.")]

LoadSample = Callable[[str], Sequence[str]]
"""Called with the dsn of the stack's database: creates sample tables there, unless they are there; returns their names.

Raises HeadraceError.
"""


def up_with(load_sample: LoadSample) -> Callable[..., None]:
    """Return the command; `load_sample` is called for `--sample`."""

    def up(
        directory: Directory = None,
        as_json: AsJson = False,
        brokers: Brokers = None,
        kafka_port: Port = 0,
        postgres_port: Port = 0,
        sample: Annotated[
            bool, typer.Option("--sample", help="Create the demo's tables in the database, with rows.")
        ] = False,
        settings: Annotated[
            bool, typer.Option("--write-settings", help="Write a settings file with the servers' addresses.")
        ] = False,
        config: Config = None,
    ) -> None:
        """Start Kafka and PostgreSQL in the background.

            headrace up --sample --write-settings

        `headrace down` stops them. With --brokers 3 each record has three replicas and is acknowledged by two; with
        --kafka-port they use consecutive ports. --write-settings never overwrites a file; it captures the tables of
        --sample.
        """
        require_stack()
        from infra.cli import tables
        from infra.service import interrupts
        from infra.settings.file import settings_path
        from infra.stack.background import bring_up
        from infra.stack.stack_settings import require_free, write_settings

        place, path = _place(directory), settings_path(config)
        if settings:
            require_free(path)
        with interrupts.finishing(), tables.console(stderr=True).status("Starting Kafka and PostgreSQL"):
            record = bring_up(place, brokers=brokers, kafka_port=kafka_port, postgres_port=postgres_port)
        loaded: Sequence[str] = ()
        if sample:
            with tables.console(stderr=True).status("Creating the sample's tables"):
                loaded = load_sample(record.dsn)
        if settings:
            write_settings(path, record, *loaded)
        if as_json:
            typer.echo(json.dumps(report(record)))
            return
        typer.echo(f"kafka     {record.bootstrap_servers}")
        typer.echo(f"postgres  {record.dsn}")
        typer.echo(f"data      {record.data_dir}")
        if loaded:
            typer.echo(f"sample    {', '.join(loaded)}")
        if settings:
            typer.echo(f"settings  {path}")
        typer.echo(f"They stay up until `headrace down{f' --dir {place}' if directory else ''}`.")

    return up


def down(directory: Directory = None, remove_data: RemoveData = False, as_json: AsJson = False) -> None:
    """Stop the servers of `headrace up`; keep their data.

        headrace down

    With --remove-data it deletes their data, too.
    """
    require_stack()
    from infra.service import interrupts
    from infra.stack.background import bring_down

    place = _place(directory)
    with interrupts.finishing():
        was_up = bring_down(place, remove_data=remove_data)
    if as_json:
        typer.echo(json.dumps({"stopped": was_up, "data_dir": str(place), "data_removed": remove_data}))
        return
    typer.echo(f"stopped the stack in {place}" if was_up else f"nothing is up in {place}")
    if remove_data:
        typer.echo("its data is removed")


def report(record: Record) -> dict[str, object]:
    """Return what `up --json` prints."""
    from infra.stack.background import RECORD

    return {
        "bootstrap_servers": record.bootstrap_servers,
        "dsn": record.dsn,
        "pid_file": str(Path(record.data_dir) / RECORD),
        "data_dir": record.data_dir,
        "pids": {name: identity.pid for name, identity in record.processes.items()},
    }


def _place(directory: Path | None) -> Path:
    from infra.stack.background import default_directory

    return (directory or default_directory()).absolute()
