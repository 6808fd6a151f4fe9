"""The system's own PostgreSQL, of whatever version a package has installed, started beside the stack's."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from infra.stack.databases import SUPERUSER, DatabaseServer
from infra.stack.ports import free_port
from infra.stack.postgres_programs import hand_over, runs_as
from infra.stack.processes import Keeper, unprivileged_account

SETTINGS = {
    "wal_level": "logical",
    "max_slot_wal_keep_size": "4GB",
    "max_prepared_transactions": "10",
    "fsync": "off",
    "dynamic_shared_memory_type": "mmap",
    "timezone": "UTC",
}
READY_SECONDS = 180.0


def installed_versions() -> dict[int, Path]:
    """Return major version → directory of its programs, for those that run here."""
    account = unprivileged_account()
    found = Path("/usr/lib/postgresql").glob("*/bin")
    return {int(path.parent.name): path for path in found if runs_as(account, path / "postgres")}


class InstalledPostgres(DatabaseServer):
    """A running server; only its superuser can reach it, by a socket in a directory of its own."""

    def __init__(self, socket: Path, port: int) -> None:
        self._socket = socket
        self._port = port

    def dsn(self, database: str = "postgres") -> str:
        return f"postgresql://{SUPERUSER}@/{database}?host={self._socket}&port={self._port}"


@contextmanager
def installed_postgres(programs: Path) -> Iterator[InstalledPostgres]:
    """A server in a temporary directory, gone at the end, also when this process is killed."""
    directory = Path(tempfile.mkdtemp(prefix="headrace-pg-"))
    account = unprivileged_account()
    keeper = Keeper(remove=directory)
    try:
        directory.chmod(0o711)
        data, socket = directory / "data", directory / "socket"
        for each in (data, socket):
            hand_over(each, account)
        options: list[str | Path] = [
            "-D",
            data,
            "-U",
            SUPERUSER,
            "--auth=trust",
            "--no-sync",
            "--encoding=UTF8",
            "--locale=C",
        ]
        keeper.run([programs / "initdb", *options], log=directory / "initdb.log", cwd=data, account=account)
        port = free_port()
        words = [word for name, value in SETTINGS.items() for word in ("-c", f"{name}={value}")]
        # Nobody else can enter the socket's directory, so that trust is enough; root alone passes.
        command: list[str | Path] = [programs / "postgres", "-D", data, "-p", str(port), "-h", "", "-k", socket, *words]
        server = keeper.start(
            command, log=directory / "server.log", cwd=data, account=account, stop_signal=signal.SIGQUIT
        )
        running = InstalledPostgres(socket, port)
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                running.connect().close()
                break
            except psycopg.OperationalError:
                assert server.poll() is None, server.last_lines()
                assert time.monotonic() < deadline, "the installed PostgreSQL did not answer"
                time.sleep(0.02)
        try:
            yield running
        finally:
            server.stop(signal.SIGQUIT, 30.0)
    finally:
        keeper.close()
