"""The stack that stays up: what `headrace up` records, and how `headrace down` finds it again.

The record is a JSON file in the stack's directory, readable by its owner only since it holds the password. A process
counts as ours only if its start time is the recorded one too: an id alone may have been given to another.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
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

RECORD = "stack.json"
PORTS = "ports.json"
LOCK = "stack.lock"
STOP_SECONDS = 30.0
# What the directory may hold when its data is removed: never more than the stack itself put there.
OWN = ("kafka", "postgres", "pgsql", PORTS)


@dataclass(frozen=True)
class Record:
    """A stack that was left up."""

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
    """Return what so many brokers are called where processes and ports are listed."""
    return ["kafka"] if count == 1 else [f"kafka-{number}" for number in range(1, count + 1)]


def default_directory() -> Path:
    """Return where the stack lives unless told otherwise: the user's data directory.

    Root's own is closed to the user who runs PostgreSQL for root: the system's state directory takes its place.
    """
    if unprivileged_account() is not None:
        return Path(platformdirs.site_state_dir("headrace")) / "stack"
    return Path(platformdirs.user_data_dir("headrace")) / "stack"


def bring_up(directory: Path, *, brokers: int | None = None, kafka_port: int = 0, postgres_port: int = 0) -> Record:
    """Start a stack that outlives this process, or return the one that is up in `directory` already.

    Ports are those asked for, of several brokers one after the other; 0 is the port of the last time if it is still
    free, else any free one. Data of an earlier time is taken up again, and with it the number of brokers; without any,
    None is one broker. Raises UsageError, in one line, when there is another number of brokers already, a port is taken
    or the space is not enough.
    """
    if brokers is not None and brokers not in COUNTS:
        raise UsageError(
            f"a stack has {', '.join(map(str, COUNTS))} brokers, not {brokers}",
            remedy="each is a controller too, and of an even number one more may not fail",
        )
    with _locked(directory):
        record = read_record(directory)
        if record is not None:
            alive = record.alive()
            if alive.keys() == record.processes.keys():
                _require_same(directory, record.brokers, brokers)
                return record
            _stop(alive)  # half of it was killed: the other half is of no use
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

    Only processes that are the recorded ones get a signal. `remove_data` deletes what the stack put there.
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
        with contextlib.suppress(OSError):  # something else is in it: that is not ours to remove
            directory.rmdir()
    return bool(alive)


def read_record(directory: Path) -> Record | None:
    """Return what is recorded in `directory`; None when nothing is, or nothing that can be read. Raises NewerFormat."""
    try:
        raw = formats.STACKS.read(json.loads((directory / RECORD).read_text()), f"file {directory / RECORD}")
        processes = {name: Identity(**identity) for name, identity in raw.pop("processes").items()}
        return Record(**raw, processes=processes)
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, Malformed):
        return None


def write_private(path: Path, content: object) -> None:
    """Replace a JSON file in one step, readable by its owner only."""
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
            f"the stack in {directory} has {there} broker{'s'[: there > 1]}, and not {wanted}",
            remedy="leave out --brokers, choose another directory with --dir, or remove it with down --remove-data",
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
            f"process {', '.join(str(process.pid) for process in stuck)} does not end",
            remedy="see its state with ps; it may wait for a disk",
        )


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / LOCK).open("w")
    except FileExistsError:
        raise UsageError(f"{directory} is not a directory", remedy="choose another place with --dir") from None
    except OSError as error:
        raise translated(error, directory) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
