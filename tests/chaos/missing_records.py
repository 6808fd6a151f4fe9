"""Repositories on disk without a record, two walks and two consumers at once, one of them killed: each gets one record.

`python -m tests.chaos.missing_records [--repositories N] [--schema old|new]` prints one JSON object a line: name,
value, unit. Exit code 1 means that something other than the missing records was written, or one of them twice.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import tomli_w

from consumers.testing.waiting import until
from infra.stack import Stack, embedded_stack
from tests.consumers.praefect_database import SCHEMAS, checksum, flags, has_ids, hosts, listening, records, written
from tests.producers.storages import hashed, repository

PATIENCE = 1800.0
"""Timeout in seconds; nothing is asserted about it."""

Report = Callable[[str, float, str], None]
End = Callable[[subprocess.Popen[bytes]], None]


def play(
    stack: Stack, directory: Path, repositories: int, schema: str, report: Report, end: End = subprocess.Popen.kill
) -> None:
    """Import `repositories`, three in ten of which have records; raises AssertionError if a promise is broken.

    `end` ends one of the two consumers halfway; another replaces it.
    """
    paths = [hashed(project) for project in range(repositories)]
    known, missing = paths[: repositories * 3 // 10], paths[repositories * 3 // 10 :]
    storage = directory / "storage"
    for path in paths:
        repository(storage, path)
    dsn = stack.postgres.create_database(f"praefect_{os.getpid()}_{schema}")
    config = directory / "headrace.toml"
    prefix = f"import-{os.getpid()}-{schema}"
    config.write_text(tomli_w.dumps(_settings(stack, prefix, dsn, storage)))
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(SCHEMAS[schema])
        _track(connection, known)
        before = checksum(connection, known)
        with listening(dsn) as (_, received), _processes(config) as start:
            members = [start("consume", "missing_records") for _ in range(2)]
            began = time.perf_counter()
            walks = [start("produce", "default") for _ in range(2)]
            until(lambda: _count(connection) > repositories // 2, "half of the records")
            end(members[0])
            start("consume", "missing_records")
            codes = [walk.wait(PATIENCE) for walk in walks]
            report("start to end of the walks", repositories / (time.perf_counter() - began), "repositories/s")
            # The walk that took over finished, unless both took over from each other: then the service walks.
            assert set(codes) <= {0, 3}, f"the walks ended with {codes}"
            assert start("produce", "default", "--until-imported").wait(PATIENCE) == 0
            assert flags(connection) == {"default": True}
            report("start of the walks to the flag", repositories / (time.perf_counter() - began), "repositories/s")
            listener = received()
            assert members[1].poll() is None, "a consumer ended by itself"
            assert start("verify", "missing_records").wait(PATIENCE) == 0, "headrace verify found something left to do"
        assert checksum(connection, known) == before, "existing records were changed"
        assert sorted(written(connection)) == sorted(f"INSERT {path}" for path in missing), "not each missing one once"
        assert records(connection).keys() == set(paths), "the records differ from the storage"
        hosted = hosts(connection)
        assert all(hosted[path] == {"gitaly-0": 0} for path in missing), "a record without its storage"
        assert sorted(listener.paths()) == sorted(missing), "Praefect was not notified of each once"
        assert listener.longest < 8_000, f"a notification is {listener.longest} bytes long"
        assert written(connection, "virtual_storages") == ["INSERT default"], "the flag was not set exactly once"
    report("records made", len(missing), "records")
    report("notifications", len(listener.payloads), "notifications")
    report("longest notification", listener.longest, "bytes")


def _settings(stack: Stack, prefix: str, dsn: str, storage: Path) -> dict[str, Any]:
    return {
        "prefix": prefix,
        "kafka": {"bootstrap_servers": stack.endpoints.bootstrap_servers},
        "databases": {"praefect": {"dsn": dsn, "gitlab_schemas": ["praefect"]}},
        "virtual_storages": {
            "default": {
                "database": "praefect",
                "primary": "gitaly-0",
                "storages": {"gitaly-0": {"path": str(storage)}},
            }
        },
    }


def _track(connection: psycopg.Connection[Any], paths: Sequence[str]) -> None:
    """Insert records for many repositories at once, without notifications."""
    replica = ", replica_path" if has_ids(connection) else ""
    repository_id = ", repository_id" if has_ids(connection) else ""
    connection.execute("SET session_replication_role = replica")
    connection.execute(
        f"INSERT INTO repositories (virtual_storage, relative_path, generation{replica})"
        f" SELECT 'default', path, 7{', path' if replica else ''} FROM unnest(%s::text[]) path",
        (list(paths),),
    )
    connection.execute(
        f"INSERT INTO storage_repositories (virtual_storage, relative_path, storage, generation{repository_id})"
        f" SELECT virtual_storage, relative_path, storage, 7{repository_id}"
        " FROM repositories, unnest(ARRAY['gitaly-0', 'gitaly-1']) storage"
    )
    connection.execute("RESET session_replication_role")
    connection.execute("VACUUM ANALYZE repositories, storage_repositories")


def _count(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SELECT count(*) FROM repositories").fetchone()
    assert row is not None
    return int(row[0])


@contextmanager
def _processes(config: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Yield a function that starts a command; all started commands are stopped at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "headrace", *arguments, "--config", str(config)]
        started.append(subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=log, stderr=log))
        return started[-1]

    with (config.parent / "log").open("ab") as log:
        try:
            yield start
        finally:
            for process in started:
                process.terminate()
            for process in started:
                process.wait(PATIENCE)


def _print(name: str, value: float, unit: str) -> None:
    print(json.dumps({"name": name, "value": round(value, 1), "unit": unit}), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.missing_records", description=__doc__)
    parser.add_argument("--repositories", type=int, default=100_000)
    parser.add_argument("--schema", choices=sorted(SCHEMAS), default="new")
    chosen = parser.parse_args()
    with embedded_stack(fsync=False) as stack, tempfile.TemporaryDirectory(prefix="headrace-import-") as made:
        try:
            play(stack, Path(made), chosen.repositories, chosen.schema, _print)
        except AssertionError as error:
            print(f"{error}\n{Path(made, 'log').read_text()[-3000:]}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
