"""Runs one Apache Kafka broker of a cluster: a combined KRaft broker and controller in one JVM, on loopback."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import signal
import socket
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from infra.stack.brokers.broker_settings import JVM_OPTIONS, LISTENERS, LOG4J
from infra.stack.brokers.class_archive import ClassArchive
from infra.stack.brokers.jars import kafka_home
from infra.stack.brokers.java import find_java
from infra.stack.processes.keeper import Guarded, Keeper
from infra.stack.processes.ports import free_ports, require_free
from schemas.errors import BrokerUnavailable

READY_SECONDS: Final = 180.0
"""A broker that was killed first recovers its log: on a busy disk that takes a minute."""
STOP_SECONDS: Final = 30.0
CHECKPOINT: Final = "bootstrap.checkpoint"


class PortTaken(BrokerUnavailable):
    """Start it again: another program took the port meanwhile."""


@dataclass
class Cluster:
    """The state that the brokers of a cluster share; ports by a broker's number, its node id in Kafka."""

    settings: Mapping[str, str]
    heap: Sequence[str]
    id: str = ""
    ports: dict[int, int] = field(default_factory=dict)
    controller_ports: dict[int, int] = field(default_factory=dict)


class EmbeddedBroker:
    """Broker `number` of a cluster, with its data, configuration and log in `directory`."""

    def __init__(self, number: int, directory: Path, keeper: Keeper, cluster: Cluster) -> None:
        self.number = number
        self.directory = directory
        self.log = directory / "server.log"
        self._keeper = keeper
        self._cluster = cluster
        self._process: Guarded | None = None

    @property
    def port(self) -> int:
        """The port for clients; 0 before the cluster's first start."""
        return self._cluster.ports.get(self.number, 0)

    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def process(self) -> Guarded:
        """The running broker; raises BrokerUnavailable if it has not been started."""
        if self._process is None:
            raise BrokerUnavailable(f"broker {self.number} of the embedded Kafka is not running")
        return self._process

    @property
    def running(self) -> bool:
        """Whether its process exists, frozen or not."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it and wait until the cluster has it in service; does nothing if it runs.

        That needs a majority of the brokers. Raises BrokerUnavailable if it does not come up, UsageError if its port is
        taken.
        """
        if self.running:
            return
        require_free(self.port, "Kafka", "--kafka-port")
        home, java = kafka_home(), find_java()
        self.format()
        self._configure(self.directory / "server.properties", self.directory / "data")
        log_before = self.log.stat().st_size if self.log.exists() else 0
        archive = ClassArchive(home, java, JVM_OPTIONS, self.directory)
        process = self._keeper.start(
            self._command(
                home, java, ["kafka.Kafka", self.directory / "server.properties"], archive.launch_options(self._keeper)
            ),
            log=self.directory / "console.log",
            cwd=self.directory,
        )
        try:
            self._await_service(process)
        except BrokerUnavailable as error:
            process.kill()
            with contextlib.suppress(OSError), self.log.open("rb") as log:
                log.seek(log_before)
                if b"Address already in use" in log.read():
                    raise PortTaken(error.problem) from error
            raise
        except BaseException:
            process.kill()
            raise
        self._process = process
        archive.note_classes()

    def stop(self) -> None:
        """Shut down cleanly, keeping the data; does nothing if it is down."""
        if self._process is not None:
            self.thaw()
            self._process.stop(signal.SIGTERM, STOP_SECONDS)
            self._process = None

    def kill(self) -> None:
        """SIGKILL it, even if frozen, keeping the data; does nothing if it is down."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def restart(self) -> None:
        """Stop (unless killed already) and start again, on the same port, with the same data."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """SIGSTOP it: its connections stay open without answers, as if the machine hung."""
        self.process.send(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT it; does nothing if it runs or is down."""
        if self._process is not None:
            self._process.send(signal.SIGCONT)

    def format(self) -> None:
        """Format its data directory for the cluster, unless it is formatted; see `cluster_of`."""
        (self.directory / "tmp").mkdir(parents=True, exist_ok=True)
        data = self.directory / "data"
        properties = data / "meta.properties"
        if properties.exists():
            return
        data.mkdir(exist_ok=True)
        shutil.copyfile(self._bootstrap_checkpoint(), data / CHECKPOINT)
        new = data / "meta.properties.new"
        new.write_text(
            f"version=1\ncluster.id={self._cluster.id}\nnode.id={self.number}\ndirectory.id={kafka_uuid()}\n"
        )
        new.rename(properties)

    def _bootstrap_checkpoint(self) -> Path:
        """Return the bootstrap checkpoint with the feature levels of a new cluster, the same for every cluster.

        Kafka's own formatter creates it once per set of jars: that takes a JVM and a second.
        """
        home, java = kafka_home(), find_java()
        cached = home / CHECKPOINT
        if not cached.exists():
            with tempfile.TemporaryDirectory(dir=self.directory) as scratch:
                formatted = Path(scratch) / "data"
                configuration = Path(scratch) / "format.properties"
                self._configure(configuration, formatted)
                tool: list[str | Path] = ["kafka.tools.StorageTool", "format", "-t", kafka_uuid(), "-c", configuration]
                log = self.directory / "format.log"
                self._keeper.run(self._command(home, java, tool), log=log, cwd=self.directory)
                own = home / f"{CHECKPOINT}.{os.getpid()}.{uuid.uuid4().hex}"
                shutil.copyfile(formatted / CHECKPOINT, own)
                own.rename(cached)
        return cached

    def _configure(self, file: Path, data: Path) -> None:
        cluster = self._cluster
        controller = cluster.controller_ports[self.number]
        settings = {
            "controller.quorum.voters": ",".join(
                f"{number}@127.0.0.1:{port}" for number, port in cluster.controller_ports.items()
            ),
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self.port}",
        }
        for name, value in cluster.settings.items():
            settings[name] = f"{settings[name]},{value}" if name in LISTENERS else value
        settings |= {"node.id": str(self.number), "log.dirs": str(data)}
        file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        (self.directory / "log4j2.properties").write_text(LOG4J.format(log=self.log))

    def _command(self, home: Path, java: Path, main: list[str | Path], options: Sequence[str] = ()) -> list[str | Path]:
        return [
            java,
            *JVM_OPTIONS,
            *self._cluster.heap,
            *options,
            f"-Djava.io.tmpdir={self.directory / 'tmp'}",
            f"-XX:ErrorFile={self.directory / 'jvm-crash.log'}",
            f"-Dlog4j2.configurationFile={self.directory / 'log4j2.properties'}",
            "-cp",
            f"{home}/*",
            *main,
        ]

    def _await_service(self, process: Guarded) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise BrokerUnavailable(
                    f"Kafka ended while starting: {process.last_lines(1)}", remedy=f"its log is {self.log}"
                )
            # another Kafka may have taken the port: ours then ends, since it cannot bind it
            if _answers(self.port) and serving(self.bootstrap_servers, self.number) == self._cluster.id:
                return
            time.sleep(0.02)
        raise BrokerUnavailable(f"Kafka did not answer within {READY_SECONDS:.0f} s", remedy=f"its log is {self.log}")


def cluster_of(directory: Path) -> str | None:
    """Return the id of the cluster that a broker's directory belongs to, None without data."""
    properties = directory / "data" / "meta.properties"
    if not properties.exists():
        return None
    return dict(line.partition("=")[::2] for line in properties.read_text().splitlines())["cluster.id"]


def kafka_uuid() -> str:
    """Return a new id in the form of Kafka's cluster and directory ids."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")


def serving(bootstrap_servers: str, number: int = 1) -> str | None:
    """Return the id of the cluster that answers there and has that broker in service, None if there is none."""
    client = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0})
    with contextlib.suppress(KafkaException):
        metadata = client.list_topics(timeout=5)
        return str(metadata.cluster_id) if number in metadata.brokers else None
    return None


def ports_for(numbers: Sequence[int], kept: Mapping[int, int]) -> dict[int, int]:
    """Return a distinct port for each number: the kept one, or one that is free now."""
    chosen = {number: kept[number] for number in numbers if kept.get(number)}
    missing = [number for number in numbers if number not in chosen]
    chosen |= zip(missing, free_ports(len(missing), chosen.values()), strict=True)
    return {number: chosen[number] for number in numbers}


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
