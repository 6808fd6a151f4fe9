"""Runs the stack of `headrace up` in the background, and stops it for `headrace down`.

The record of a stack is a JSON file in its directory, readable only by its owner since it contains the password. A
process is identified by its id and start time: an id alone may have been reused.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import platformdirs
import psutil  # type: ignore[import-untyped]  # it ships no types

from infra.stack.brokers.broker_settings import COUNTS
from infra.stack.brokers.cluster import brokers_in
from infra.stack.embedded import EmbeddedStack, translated
from infra.stack.interface import Endpoints
from infra.stack.processes.keeper import Identity, unprivileged_account, wait_gone
from infra.stack.processes.ports import is_free
from schemas import formats
from schemas.errors import HeadraceError, Malformed, UsageError
from schemas.lazy_dataclass import dataclass

RECORD = "stack.json"
PORTS = "ports.json"
LOCK = "stack.lock"
STOP_SECONDS = 30.0
# What --remove-data deletes: only what the stack itself created.
OWN = ("kafka", "postgres", "pgsql", PORTS)


@dataclass(frozen=True)
class Record:
    """A stack in the background."""

    bootstrap_servers: str
    dsn: str
    data_dir: str
    processes: dict[str, Identity]

    @property
    def endpoints(self) -> Endpoints:
        return Endpoints(self.bootstrap_servers, self.dsn)

    @property
    def brokers(self) -> int:
        return len(self.bootstrap_servers.split(","))

    def alive(self) -> dict[str, psutil.Process]:
        """Return those of its processes that still run."""
        found = {name: identity.find() for name, identity in self.processes.items()}
        return {name: process for name, process in found.items() if process is not None}


def broker_names(count: int) -> list[str]:
    """Return the names of `count` brokers in the lists of processes and ports."""
    return ["kafka"] if count == 1 else [f"kafka-{number}" for number in range(1, count + 1)]


def default_directory() -> Path:
    """Return the default directory of the stack, below the user's data directory.

    For root it is the system's state directory: the user that runs PostgreSQL for root cannot enter root's own.
    """
    if unprivileged_account() is not None:
        return Path(platformdirs.site_state_dir("headrace")) / "stack"
    return Path(platformdirs.user_data_dir("headrace")) / "stack"


def bring_up(directory: Path, *, brokers: int | None = None, kafka_port: int = 0, postgres_port: int = 0) -> Record:
    """Start a stack that outlives this process, or return the running one of `directory`.

    Several brokers use consecutive ports; port 0 is the previous one if it is still free, else any free one. Existing
    data is reused, with its number of brokers; without data, None means one broker. Raises UsageError if the number of
    brokers differs, a port is taken or the disk space is insufficient.
    """
    if brokers is not None and brokers not in COUNTS:
        raise UsageError(
            f"a stack has {', '.join(map(str, COUNTS))} brokers, not {brokers}",
            remedy="choose an odd number: each broker is also a controller, and a fourth tolerates no more failures",
        )
    with _locked(directory):
        record = read_record(directory)
        if record is not None:
            alive = record.alive()
            if alive.keys() == record.processes.keys():
                _require_same(directory, record.brokers, brokers)
                return record
            _stop(alive)  # some of its processes were killed: stop the others
            (directory / RECORD).unlink()
        there = brokers_in(directory / "kafka")
        if there:
            _require_same(directory, there, brokers)
        remembered = _remembered_ports(directory)
        names = broker_names(there or brokers or 1)
        stack = EmbeddedStack.started(
            directory,
            kafka_ports=[
                kafka_port + place if kafka_port else remembered.get(name, 0) for place, name in enumerate(names)
            ],
            postgres_port=postgres_port or remembered.get("postgres", 0),
        )
        processes = {
            **{name: broker.process for name, broker in zip(names, stack.kafka.brokers.values(), strict=True)},
            "postgres": stack.postgres.process,
        }
        try:
            record = Record(
                stack.endpoints.bootstrap_servers,
                stack.endpoints.dsn,
                str(directory),
                {name: process.identity for name, process in processes.items()},
            )
            ports = dict(zip(names, stack.kafka.ports, strict=True)) | {"postgres": stack.postgres.port}
            write_private(directory / PORTS, ports)
            write_private(directory / RECORD, formats.STACKS.write(asdict(record)))
        except BaseException:
            stack.close()
            raise
        stack.detach()
        return record


def bring_down(directory: Path, *, remove_data: bool = False) -> bool:
    """Stop the stack in `directory`; return whether one was up.

    Only the recorded processes get a signal. `remove_data` deletes what the stack created.
    """
    if not directory.is_dir():
        return False
    with _locked(directory):
        record = read_record(directory)
        alive = record.alive() if record is not None else {}
        _stop(alive)
        (directory / RECORD).unlink(missing_ok=True)
        if remove_data:
            for name in OWN:
                path = directory / name
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
    if remove_data:
        (directory / LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it contains other files, which are not ours
            directory.rmdir()
    return bool(alive)


def read_record(directory: Path) -> Record | None:
    """Return the record in `directory`, None if there is no readable one. Raises NewerFormat."""
    try:
        raw = formats.STACKS.read(json.loads((directory / RECORD).read_text()), f"file {directory / RECORD}")
        processes = {name: Identity(**identity) for name, identity in raw.pop("processes").items()}
        return Record(**raw, processes=processes)
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, Malformed):
        return None


def write_private(path: Path, content: object) -> None:
    """Replace a JSON file atomically, readable only by its owner."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(content, file, indent=2)
    new.rename(path)


def _remembered_ports(directory: Path) -> dict[str, int]:
    try:
        ports: dict[str, int] = json.loads((directory / PORTS).read_text())
        return {name: port for name, port in ports.items() if is_free(port)}
    except (OSError, ValueError):
        return {}


def _require_same(directory: Path, there: int, wanted: int | None) -> None:
    if wanted not in (None, there):
        raise UsageError(
            f"the stack in {directory} has {there} broker{'s'[: there > 1]}, not {wanted}",
            remedy="omit --brokers, choose another directory with --dir, or delete its data with down --remove-data",
        )


def _stop(alive: Mapping[str, psutil.Process]) -> None:
    everything = list(alive.values())
    for name, process in alive.items():
        with contextlib.suppress(psutil.NoSuchProcess):
            everything += process.children(recursive=True)
            process.send_signal(signal.SIGINT if name == "postgres" else signal.SIGTERM)
    for process in wait_gone(everything, STOP_SECONDS):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    if stuck := wait_gone(everything, STOP_SECONDS):
        raise HeadraceError(
            f"process {', '.join(str(process.pid) for process in stuck)} does not exit",
            remedy="see its state with ps; it may wait for a disk",
        )


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / LOCK).open("w")
    except FileExistsError:
        raise UsageError(f"{directory} is not a directory", remedy="choose another directory with --dir") from None
    except OSError as error:
        raise translated(error, directory) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
