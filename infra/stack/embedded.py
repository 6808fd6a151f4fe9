"""The embedded stack: Kafka and PostgreSQL as guarded child processes in one directory."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from infra.stack.brokers.cluster import EmbeddedKafka, at_once
from infra.stack.interface import Endpoints
from infra.stack.postgresql.server import EmbeddedPostgres
from infra.stack.processes.keeper import Keeper
from schemas.errors import HeadraceError, UsageError

FREE_BYTES_NEEDED = 512 * 1024 * 1024
_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - mkdtemp makes a private directory in it
_MEMORY_BYTES_NEEDED: Final = 8 << 30


class EmbeddedStack:
    """A Kafka, of as many brokers as `kafka_ports`, and a database server in `directory`; made by `started`."""

    def __init__(
        self,
        directory: Path,
        keeper: Keeper,
        *,
        kafka_ports: Sequence[int] = (0,),
        postgres_port: int = 0,
        fsync: bool = True,
    ) -> None:
        self.directory = directory
        self.keeper = keeper
        self.kafka = EmbeddedKafka(directory / "kafka", keeper, ports=kafka_ports)
        self.postgres = EmbeddedPostgres(directory / "postgres", keeper, port=postgres_port, fsync=fsync)
        self._standbys: list[EmbeddedPostgres] = []
        self._temporary = False

    @classmethod
    def started(
        cls,
        directory: Path | None = None,
        *,
        kafka_ports: Sequence[int] = (0,),
        postgres_port: int = 0,
        fsync: bool = True,
    ) -> Self:
        """Start both at once; see `infra.stack.embedded_stack`."""
        temporary = directory is None
        in_memory = None if fsync else _memory_directory()
        place = Path(tempfile.mkdtemp(prefix="headrace-", dir=in_memory)) if directory is None else directory
        keeper = Keeper(remove=place if temporary else None)
        stack = cls(place, keeper, kafka_ports=kafka_ports, postgres_port=postgres_port, fsync=fsync)
        stack._temporary = temporary
        try:
            stack.start()
        except BaseException:
            stack.close()
            raise
        return stack

    @property
    def endpoints(self) -> Endpoints:
        return Endpoints(self.kafka.bootstrap_servers, self.postgres.dsn())

    def start(self) -> None:
        """Start what does not run."""
        try:
            for server in (self.kafka, self.postgres):
                server.directory.mkdir(parents=True, exist_ok=True)
            # others may traverse it, not list it: PostgreSQL's own user must reach its directory when we are root
            self.directory.chmod(0o711)
            require_space(self.directory)
            self.kafka.check()
            self.postgres.check()
            at_once([self.kafka.start, self.postgres.start])
        except OSError as error:
            raise translated(error, self.directory) from error
        except HeadraceError as error:
            if "No space left" in str(error) or shutil.disk_usage(self.directory).free < FREE_BYTES_NEEDED // 8:
                raise out_of_space(self.directory) from error
            raise

    def standby(self, name: str) -> EmbeddedPostgres:
        """Start a physical standby of the database server; it ends with this stack."""
        standby = self.postgres.standby(name)
        self._standbys.append(standby)
        return standby

    def detach(self) -> None:
        """Let the servers outlive this process."""
        self.keeper.detach()

    def close(self) -> None:
        """Stop both and remove a temporary directory; idempotent."""
        if self._temporary:  # the data will not be read again: no clean shutdown is needed
            stops = [self.kafka.kill, self.postgres.abandon, *(standby.abandon for standby in self._standbys)]
        else:
            stops = [self.kafka.stop, self.postgres.stop, *(standby.stop for standby in self._standbys)]
        at_once(stops)
        self.keeper.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _memory_directory() -> Path | None:
    """Return a directory in memory for data that need not survive the machine, None without room for it.

    Databases and topics are mostly files that are created and removed, which a disk's file system takes longest for.
    """
    try:
        available = re.search(r"^MemAvailable: +(\d+) kB$", Path("/proc/meminfo").read_text("ascii"), re.MULTILINE)
        free = shutil.disk_usage(_MEMORY).free if os.access(_MEMORY, os.W_OK) else 0
    except OSError:
        return None
    enough = available is not None and min(free, int(available[1]) << 10) >= _MEMORY_BYTES_NEEDED
    return _MEMORY if enough else None


def require_space(directory: Path, needed: int = FREE_BYTES_NEEDED) -> None:
    """Raise UsageError when there are fewer free bytes than two servers need to start."""
    if shutil.disk_usage(directory).free < needed:
        raise out_of_space(directory)


def out_of_space(directory: Path) -> UsageError:
    return UsageError(
        f"no space left in {directory}: Kafka and PostgreSQL need {FREE_BYTES_NEEDED >> 20} MB to start",
        remedy="free some space, or choose another directory with --dir",
    )


def translated(error: OSError, directory: Path) -> UsageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return out_of_space(directory)
    return UsageError(
        f"cannot use {error.filename or directory}: {error.strerror or error}",
        remedy="choose another directory with --dir",
    )
