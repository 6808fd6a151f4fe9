"""pg_recvlogical, which receives a slot's changes and does nothing with them: the limit of every reader."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from infra.stack.postgresql.postgres_programs import installed_programs
from tests.benchmarks.bench import Bench

RECEIVER: Final = "bench_receiver"
"""The name of its slot."""


def create_receiver(bench: Bench, dsn: str) -> None:
    """Create its slot, which gets the changes from now on."""
    with bench.sql(dsn) as connection:
        connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (RECEIVER,))


def receiver_command(
    bench: Bench, dsn: str, publication: str, target: Path, *options: str
) -> tuple[list[str | Path], dict[str, str]]:
    """Return its command line and environment; it writes the changes of a publication to `target`."""
    database, env = bench.for_libpq(dsn)
    words = ["-d", database, "-S", RECEIVER, "--start", "--no-loop", "-f", str(target), *options]
    words += ["-o", "proto_version=1", "-o", f"publication_names={publication}"]
    return [installed_programs() / "pg_recvlogical", *words], env
