"""Writes the state of this version into tests/upgrades/states/<version>: `python -m tests.upgrades.release`.

Once for each release. The state is of a migration in mid-course: some rows are changed, one is a dead letter, its pace
was changed and it is paused, and a range was re-snapshotted.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from consumers.testing.waiting import PATIENCE, until
from infra.settings.file import load_settings
from infra.stack import Stack
from infra.state.positions import read_sources
from producers.session.service import produce
from schemas.formats import PROGRAM
from tests.conftest import new_database, start_stack
from tests.consumers.container_repositories import TABLE, TOO_MANY_TAGS, fill, write_settings
from tests.consumers.services import ROOT
from tests.upgrades.states import RELEASED, save

ROWS = range(40)
FAILING = 13
"""The row that the database refuses to change."""
REFUSAL = f"ALTER TABLE container_repositories ADD CHECK (id <> {FAILING} OR migration_state <> 'default')"


def settings_file(path: Path, prefix: str, stack: Stack, dsn: str) -> Path:
    """Write the settings of one source and of skip_resets, which never completes and commits a few rows at a time."""
    return write_settings(
        path,
        {
            "prefix": prefix,
            "kafka": {"bootstrap_servers": stack.endpoints.bootstrap_servers},
            "databases": {
                "main": {
                    "dsn": dsn,
                    "gitlab_schemas": ["gitlab_main"],
                    "tables": ["public.container_repositories"],
                    "allow_unlimited_wal": True,
                }
            },
            "migrations": {"skip_resets": {"sub_batch_size": 10, "continuous": True}},
        },
    )


def write_state(directory: Path, stack: Stack, work: Path) -> None:
    """Play a migration on servers of a stack, with `work` for its settings, and write what it leaves stored."""
    with new_database(stack.postgres) as database:
        config = settings_file(work / "headrace.toml", f"s{database.name[-6:]}", stack, database.dsn)
        settings = load_settings(config)
        connection = database.connect()
        connection.execute(TABLE)
        connection.execute(REFUSAL)
        fill(connection, dict.fromkeys(ROWS, TOO_MANY_TAGS))

        def headrace(*arguments: str) -> None:
            command = [sys.executable, "-m", "headrace", *arguments, "--config", str(config)]
            subprocess.run(command, cwd=ROOT, check=True, timeout=PATIENCE)

        def copied() -> bool:
            state = read_sources(settings).get("main")
            return (
                state is not None
                and bool(state.snapshots)
                and not any(each.under_way for each in state.snapshots.values())
            )

        stop = threading.Event()
        producer = threading.Thread(target=produce, args=(settings, "main", stop))
        producer.start()
        try:
            until(copied, "the table is copied")
            headrace("consume", "skip_resets", "--until-caught-up")
            headrace("pace", "skip_resets", "--max-rate", "500", "--reason", "beside the nightly report")
            headrace("pause", "skip_resets", "--reason", "an upgrade")
            headrace("snapshot", "public.container_repositories", "--from", "10", "--to", "19")
        finally:
            stop.set()
            producer.join(PATIENCE)
        save(config, directory)


if __name__ == "__main__":
    with start_stack() as running, tempfile.TemporaryDirectory() as made:
        write_state(RELEASED / PROGRAM, running, Path(made))
    print(RELEASED / PROGRAM)
