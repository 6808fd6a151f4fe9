"""An Apache Kafka broker of one's own: one JVM, KRaft, broker and controller in one, on the loopback interface."""

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
from collections.abc import Sequence
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from infra.stack.class_archive import ClassArchive
from infra.stack.jars import kafka_home
from infra.stack.java import find_java
from infra.stack.ports import free_port, require_free
from infra.stack.processes import Guarded, Keeper
from schemas.errors import BrokerUnavailable

READY_SECONDS = 60.0
STOP_SECONDS = 30.0
PORT_TRIES = 5
CHECKPOINT = "bootstrap.checkpoint"

# Small and fast to start; what crash and fencing tests need to be short is short; nothing here weakens durability.
SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "auto.create.topics.enable": "false",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "500",
    "group.consumer.min.session.timeout.ms": "500",
    "group.consumer.min.heartbeat.interval.ms": "100",
    # a killed broker may not come back before the controller has given up its former self: 9 s by default
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "300",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "log.cleaner.dedupe.buffer.size": str(16 * 1024 * 1024),  # 128 MB by default, a sixth of this heap
}

JVM_OPTIONS = (
    "-Xms256m",
    "-Xmx768m",
    "-XX:+UseG1GC",
    # the first compiler only: half the time to start, and a broker mostly copies bytes: 500,000 records through a
    # transaction and back cost 1.1 s of processor time with it, 2.0 s with both
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",  # it would leave a file in the system's temporary directory
    "-XX:+IgnoreUnrecognizedVMOptions",
    "-Djava.awt.headless=true",
)

LOG4J = """\
status = error
appender.file.type = RollingFile
appender.file.name = file
appender.file.fileName = {log}
appender.file.filePattern = {log}.%i
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = [%d] %p %m (%c)%n
appender.file.policies.type = Policies
appender.file.policies.size.type = SizeBasedTriggeringPolicy
appender.file.policies.size.size = 20MB
appender.file.strategy.type = DefaultRolloverStrategy
appender.file.strategy.max = 2
rootLogger.level = INFO
rootLogger.appenderRef.file.ref = file
"""


class EmbeddedKafka:
    """A broker whose data, configuration and log live in `directory`.

    `port` 0 chooses a free one at the first start; it is kept from then on, as the data is. `heap` is the JVM's
    limit as -Xmx takes it.
    """

    def __init__(self, directory: Path, keeper: Keeper, *, port: int = 0, heap: str | None = None) -> None:
        self.directory = directory
        self.log = directory / "server.log"
        self._keeper = keeper
        self._port = port
        self._jvm_options = (*JVM_OPTIONS, f"-Xmx{heap}") if heap else JVM_OPTIONS
        self._process: Guarded | None = None

    @property
    def port(self) -> int:
        return self._port

    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def process(self) -> Guarded:
        """The running broker; raises BrokerUnavailable when it has not been started."""
        if self._process is None:
            raise BrokerUnavailable("the embedded Kafka is not running", remedy="start() it first")
        return self._process

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def check(self) -> None:
        """Raise UsageError, in one line, for what is known to be in the way before anything starts."""
        find_java()
        if self._port and not self.running:
            require_free(self._port, "Kafka", "--kafka-port")

    def start(self) -> None:
        """Start the broker and wait until it serves; does nothing when it runs.

        Raises BrokerUnavailable when it does not come up, UsageError when its port is taken.
        """
        if self.running:
            return
        self.check()
        home, java = kafka_home(), find_java()
        (self.directory / "tmp").mkdir(exist_ok=True)
        cluster = self._format(home, java)
        for attempt in range(1, PORT_TRIES + 1):
            # a port found free may be taken before the broker binds it: then the next one
            chosen = self._port or free_port()
            self._configure(chosen, free_port())
            log_before = self.log.stat().st_size if self.log.exists() else 0
            archive = ClassArchive(home, java, self._jvm_options, self.directory)
            process = self._keeper.start(
                self._command(
                    home,
                    java,
                    ["kafka.Kafka", self.directory / "server.properties"],
                    archive.launch_options(self._keeper),
                ),
                log=self.directory / "console.log",
                cwd=self.directory,
            )
            try:
                self._await_ready(process, chosen, cluster)
            except BrokerUnavailable:
                process.kill()
                with contextlib.suppress(OSError), self.log.open("rb") as log:
                    log.seek(log_before)
                    if attempt < PORT_TRIES and b"Address already in use" in log.read():
                        self.check()
                        continue
                raise
            except BaseException:
                process.kill()
                raise
            self._port, self._process = chosen, process
            archive.note_classes()
            return

    def stop(self) -> None:
        """Shut down in order; the data stays."""
        if self._process is not None:
            self._process.stop(signal.SIGTERM, STOP_SECONDS)
            self._process = None

    def kill(self) -> None:
        """SIGKILL it; the data stays as it was at that instant."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def restart(self) -> None:
        """Stop (unless killed already) and start again, on the same port, with the same data."""
        self.stop()
        self.start()

    def _format(self, home: Path, java: Path) -> str:
        """Make the data directory a formatted one, unless it is; return the cluster id."""
        data = self.directory / "data"
        properties = data / "meta.properties"
        if properties.exists():
            lines = dict(line.partition("=")[::2] for line in properties.read_text().splitlines())
            return lines["cluster.id"]
        data.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._bootstrap_checkpoint(home, java), data / CHECKPOINT)
        cluster, directory_id = _kafka_uuid(), _kafka_uuid()
        new = data / "meta.properties.new"
        new.write_text(f"version=1\ncluster.id={cluster}\nnode.id=1\ndirectory.id={directory_id}\n")
        new.rename(properties)
        return cluster

    def _bootstrap_checkpoint(self, home: Path, java: Path) -> Path:
        """Return the file that tells a new cluster its feature levels, which is the same for every cluster.

        Kafka's own formatter makes it, once for each set of jars: it costs a second and a JVM.
        """
        cached = home / CHECKPOINT
        if not cached.exists():
            with tempfile.TemporaryDirectory(dir=self.directory) as scratch:
                formatted = Path(scratch) / "data"
                configuration = Path(scratch) / "format.properties"
                self._configure(free_port(), free_port(), into=configuration, data=formatted)
                tool: list[str | Path] = ["kafka.tools.StorageTool", "format", "-t", _kafka_uuid(), "-c", configuration]
                log = self.directory / "format.log"
                self._keeper.run(self._command(home, java, tool), log=log, cwd=self.directory)
                own = home / f"{CHECKPOINT}.{os.getpid()}.{uuid.uuid4().hex}"
                shutil.copyfile(formatted / CHECKPOINT, own)
                own.rename(cached)
        return cached

    def _configure(self, port: int, controller: int, *, into: Path | None = None, data: Path | None = None) -> None:
        settings = SETTINGS | {
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
            "log.dirs": str(data or self.directory / "data"),
        }
        target = into or self.directory / "server.properties"
        target.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        (self.directory / "log4j2.properties").write_text(LOG4J.format(log=self.log))

    def _command(self, home: Path, java: Path, main: list[str | Path], options: Sequence[str] = ()) -> list[str | Path]:
        return [
            java,
            *self._jvm_options,
            *options,
            f"-Djava.io.tmpdir={self.directory / 'tmp'}",
            f"-XX:ErrorFile={self.directory / 'jvm-crash.log'}",
            f"-Dlog4j2.configurationFile={self.directory / 'log4j2.properties'}",
            "-cp",
            f"{home}/*",
            *main,
        ]

    def _await_ready(self, process: Guarded, port: int, cluster: str) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise BrokerUnavailable(
                    f"Kafka ended while starting: {process.last_lines(1)}", remedy=f"its log is {self.log}"
                )
            # another Kafka may have taken the port: then ours ends, since it cannot bind it
            if _answers(port) and cluster_id(f"127.0.0.1:{port}") == cluster:
                return
            time.sleep(0.02)
        raise BrokerUnavailable(f"Kafka did not answer within {READY_SECONDS:.0f} s", remedy=f"its log is {self.log}")


def _kafka_uuid() -> str:
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def cluster_id(bootstrap_servers: str) -> str | None:
    """Return the id of the cluster that answers there and has a broker in service; None when there is none."""
    client = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0})
    with contextlib.suppress(KafkaException):
        metadata = client.list_topics(timeout=5)
        return str(metadata.cluster_id) if metadata.brokers else None
    return None
