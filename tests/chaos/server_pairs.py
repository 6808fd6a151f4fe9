"""Primaries and standbys that start in half a second: copies of a data directory that is made once.

All servers copied from one `Template` are copies of one database system, like a primary and its standbys. A server is
reached only by a socket, whose path follows its name in the settings: a later server with the same name, such as an
old primary that became a standby of the new one, is found there too.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import sql

from consumers.testing.waiting import until
from infra.stack.postgresql.databases import SUPERUSER, DatabaseServer, drop_slots
from infra.stack.postgresql.postgres_programs import hand_over, installed_programs, reachable_programs, runs_as
from infra.stack.processes.keeper import Guarded, Keeper, unprivileged_account

SYNCHRONIZES_SLOTS: Final = 17
"""The first version in which a standby can have the slots of the primary's producers."""

_SETTINGS: Final = {
    "wal_level": "logical",
    "fsync": "off",
    "max_slot_wal_keep_size": "4GB",
    "max_prepared_transactions": "10",
    "dynamic_shared_memory_type": "mmap",
    "shared_buffers": "32MB",
    "min_wal_size": "32MB",
    "wal_receiver_status_interval": "1s",
    "wal_retrieve_retry_interval": "100ms",
    "hot_standby": "on",
    "hot_standby_feedback": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_messages": "warning",
}
_STOP_SECONDS: Final = 30.0


def installed_versions() -> dict[int, Path]:
    """Return major version → program directory, for versions installed as packages that run here."""
    account = unprivileged_account()
    found = Path("/usr/lib/postgresql").glob("*/bin")
    return {int(path.parent.name): path for path in found if runs_as(account, path / "postgres")}


def versions() -> dict[int, Path]:
    """Return major version → program directory, from the wheel and from installed packages."""
    found = installed_versions()
    programs = installed_programs()
    text = subprocess.run([programs / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    found[int(text.split()[-1].partition(".")[0])] = programs
    return found


class Template:
    """The data directory of a separate database system; `build` has made what every copy has."""

    def __init__(
        self, directory: Path, keeper: Keeper, version: int, build: Callable[[psycopg.Connection[Any]], None]
    ) -> None:
        self.directory = directory
        self.version = version
        self.keeper = keeper
        self.account = unprivileged_account()
        directory.mkdir(parents=True)
        directory.chmod(0o711)
        self.programs = reachable_programs(self.account, directory, versions()[version])
        self.data = directory / "data"
        hand_over(self.data, self.account)
        words = ("-U", SUPERUSER, "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C", "--wal-segsize=1")
        keeper.run(
            [self.programs / "initdb", "-D", self.data, *words],
            log=directory / "initdb.log",
            cwd=self.data,
            account=self.account,
        )
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in _SETTINGS.items())
        server = Server(self, directory / "template")
        shutil.rmtree(server.data)
        server.data = self.data
        server.start()
        with server.connect() as connection:
            build(connection)
        server.stop()

    @property
    def synchronizes_slots(self) -> bool:
        return self.version >= SYNCHRONIZES_SLOTS


class Server(DatabaseServer):
    """A server in `directory`, whose last part is its name in the settings; it owns what it was copied from.

    `incarnation` distinguishes it from earlier servers of that name; SQL sees it as `cluster_name`.
    """

    def __init__(self, template: Template, directory: Path, number: int = 0) -> None:
        self.template = template
        self.name = directory.name
        self.incarnation = f"{self.name}-{number}"
        self.directory = directory
        self.socket = directory / "socket"
        self.data = directory / f"data-{number}"
        self.log = directory / "server.log"
        self._process: Guarded | None = None
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o711)
        hand_over(self.socket, template.account)
        hand_over(self.data, template.account)

    @classmethod
    def primary(cls, template: Template, directory: Path) -> Server:
        """Start a copy of the template."""
        server = cls(template, directory)
        server._copy_template()
        server.start()
        return server

    @classmethod
    def standby(cls, primary: Server, directory: Path, number: int = 0, *, fresh: bool = False) -> Server:
        """Start a standby of a server; `fresh` if nothing was written there yet, so that the template can be copied."""
        server = cls(primary.template, directory, number)
        with primary.connect() as connection:
            connection.execute("SELECT pg_create_physical_replication_slot(%s, true)", (server.slot,))
        if fresh:
            server._copy_template()
        else:
            server._back_up(primary)
        server._follow(primary)
        server.start()
        primary.wait_for_standby(server)
        return server

    @property
    def slot(self) -> str:
        """Its physical slot on the server that it follows."""
        return f"standby_{self.incarnation.replace('-', '_')}"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def dsn(self, database: str = "postgres") -> str:
        return f"postgresql://{SUPERUSER}@/{database}?host={self.socket}"

    def start(self) -> None:
        """Start the server and wait until it answers; idempotent."""
        if self.running:
            return
        self._process = self.template.keeper.start(
            [
                self.template.programs / "postgres",
                *("-D", self.data, "-h", "", "-k", self.socket, "-c", f"cluster_name={self.incarnation}"),
            ],
            log=self.log,
            cwd=self.data,
            account=self.template.account,
            stop_signal=signal.SIGQUIT,
        )
        until(self._answers, f"{self.incarnation} to answer")

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Shut it down, by default without waiting for clients; SIGQUIT simulates a crash."""
        if self._process is not None:
            self._process.stop(how, _STOP_SECONDS)
            self._process = None

    def stands_by(self) -> bool:
        with self.connect() as connection:
            return connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)

    def wait_for_standby(self, standby: Server) -> None:
        """Have producers' events wait for this standby, where PostgreSQL supports that."""
        if not self.template.synchronizes_slots:
            return
        self._alter({"synchronized_standby_slots": standby.slot})

    def forget_standby(self, standby: Server) -> None:
        """Stop retaining WAL for a standby that was promoted or is gone, as an operator does."""
        if self.template.synchronizes_slots:
            self._alter({"synchronized_standby_slots": ""})
        with self.connect() as connection:
            named = sql.SQL("SELECT slot_name, active_pid FROM pg_replication_slots WHERE slot_name = {}")
            drop_slots(connection, named.format(sql.Literal(standby.slot)))

    def synchronized(self, primary: Server) -> bool:
        """Whether this standby has a persistent copy of the slot of its primary's producer; speeds up the sync."""
        with primary.connect() as first, self.connect() as second:
            first.execute("SELECT pg_log_standby_snapshot()")
            row = second.execute("SELECT bool_or(synced AND NOT temporary) FROM pg_replication_slots").fetchone()
        return row == (True,)

    def _alter(self, settings: Mapping[str, str]) -> None:
        with self.connect() as connection:
            for name, value in settings.items():
                connection.execute(sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value)))
            connection.execute("SELECT pg_reload_conf()")

    def _copy_template(self) -> None:
        self.data.rmdir()
        # With cp: it keeps the owner, and is many times faster here than copying file by file.
        subprocess.run(["cp", "-a", "--reflink=auto", self.template.data, self.data], check=True)

    def _back_up(self, primary: Server) -> None:
        source = f"host={primary.socket} user={SUPERUSER} dbname=postgres"
        self.template.keeper.run(
            [
                self.template.programs / "pg_basebackup",
                *("-D", self.data, "-d", source, "-X", "stream", "--checkpoint=fast", "--no-sync"),
            ],
            log=self.directory / "basebackup.log",
            cwd=self.data,
            account=self.template.account,
        )

    def _follow(self, primary: Server) -> None:
        source = f"host={primary.socket} user={SUPERUSER} dbname=postgres application_name={self.slot}"
        lines = {"primary_conninfo": source, "primary_slot_name": self.slot}
        if self.template.synchronizes_slots:
            lines |= {"sync_replication_slots": "on", "synchronized_standby_slots": ""}
        with (self.data / "postgresql.auto.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in lines.items())
        signalled = self.data / "standby.signal"
        signalled.touch()
        if self.template.account is not None:
            os.chown(signalled, self.template.account.uid, self.template.account.gid)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"{self.incarnation} ended: {self._process.last_lines()}"
        try:
            self.connect().close()
        except psycopg.OperationalError:
            time.sleep(0.01)
            return False
        return True
