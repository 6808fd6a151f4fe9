"""Debezium 3.6 for PostgreSQL in Kafka Connect standalone, as a process next to the servers.

The configuration that its documentation describes for throughput: JSON without schemas, lz4, batches of 8,192, a queue
of 65,536, pgoutput. Its jars come from Maven, pinned in debezium_jars.txt.
"""

from __future__ import annotations

import contextlib
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import platformdirs
from psycopg.conninfo import conninfo_to_dict

from infra.kafka.topics import delete_topics, ensure_topics
from infra.stack.brokers.jars import Jar, download_from_maven, ensure_jars, listed_jars
from infra.stack.brokers.java import find_java
from infra.stack.processes.keeper import Guarded
from infra.stack.processes.ports import free_port
from schemas.errors import HeadraceError
from tests.benchmarks.bench import Bench, Site, drop_slot
from tests.benchmarks.machine import Meter, peak_megabytes
from tests.benchmarks.producing import Run, servers
from tests.benchmarks.watching import EndWatch, await_change

_STOP_SECONDS: Final = 30.0

_WORKER: Final = {
    "key.converter": "org.apache.kafka.connect.json.JsonConverter",
    "value.converter": "org.apache.kafka.connect.json.JsonConverter",
    "key.converter.schemas.enable": "false",
    "value.converter.schemas.enable": "false",
    "producer.compression.type": "lz4",
    "plugin.discovery": "only_scan",
}
_CONNECTOR: Final = {
    "name": "debezium",
    "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
    "tasks.max": "1",
    "plugin.name": "pgoutput",
    "publication.autocreate.mode": "filtered",
    "max.batch.size": "8192",
    "max.queue.size": "65536",
}
_WIDE_WORKER: Final = {
    "producer.max.request.size": str(100 << 20),
    "producer.buffer.memory": str(256 << 20),
    "producer.batch.size": str(1 << 20),
}
"""For wide rows: requests as large as a broker accepts, a buffer that holds several records, and batches of 1 MiB, as
headrace's client has them: by default each record of more than 16 KiB would be a batch of its own."""
_BATCH_BYTES: Final = 32 << 20
_WIDE_QUEUE_BYTES: Final = 128 << 20
_LOG4J: Final = """\
status = error
appender.file.type = File
appender.file.name = file
appender.file.fileName = {log}
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d{{UNIX_MILLIS}} %p %m%n
rootLogger.level = INFO
rootLogger.appenderRef.file.ref = file
"""
_COPY_BEGINS: Final = re.compile(r"^(\d+) \S+ .*Exporting data from table", re.MULTILINE)


def pinned_debezium() -> list[Jar]:
    """Return the entries of debezium_jars.txt."""
    return listed_jars(Path(__file__).with_name("debezium_jars.txt").read_text(encoding="utf-8"))


def debezium_home() -> Path:
    """Return the directory with Debezium's jars, downloaded at first use; raises Unavailable or Malformed."""
    return ensure_jars(pinned_debezium(), Path(platformdirs.user_cache_dir("headrace")), download_from_maven)


def has_debezium(bench: Bench) -> bool:
    """Whether Debezium is available; prints the reason once if not: then figures have no peer."""

    def ask() -> bool:
        try:
            debezium_home()
            find_java()
        except HeadraceError as error:
            bench.say(f"Debezium is skipped: {error}")
            return False
        return True

    return bench.once("debezium", ask)


def _for_wide_rows(row_bytes: int) -> dict[str, str]:
    """Return the connector's settings for rows of this size, in bytes.

    Otherwise rows are limited by number alone: PostgreSQL's driver gets 10,240 at once, a batch has 8,192 and the queue
    65,536 of them, which with 1 MB each are far more than the heap. So a fetch and a batch have as many rows as are in
    32 MiB, which is also headrace's chunk, and the queue has the limit in bytes that Debezium's documentation offers.
    """
    fitting = max(1, _BATCH_BYTES // row_bytes)
    return {
        "snapshot.fetch.size": str(min(10_240, fitting)),
        "max.batch.size": str(min(8_192, fitting)),
        "max.queue.size.in.bytes": str(_WIDE_QUEUE_BYTES),
    }


class Debezium:
    """One connector for a site's tables; `name` is its topic prefix, its slot and its publication.

    With `snapshot` it copies the tables first, else it streams from its first start on. `row_bytes` is the size of wide
    rows (see `_for_wide_rows`).
    """

    def __init__(self, bench: Bench, site: Site, name: str, *, snapshot: bool, row_bytes: int | None = None) -> None:
        self._bench = bench
        self._site = site
        self.name = name
        self.topics = [f"{name}.{table}" for table in site.tables]
        self._log = bench.place / f"{name}-connect.log"
        partitions = max(ensure_topics(site.settings.kafka, self.topics).partitions.values())
        parts = conninfo_to_dict(site.dsn)
        connector = _CONNECTOR | {
            "topic.prefix": name,
            "slot.name": name,
            "publication.name": name,
            "table.include.list": ",".join(site.tables),
            "snapshot.mode": "initial" if snapshot else "no_data",
            "database.hostname": str(parts["host"]),
            "database.port": str(parts["port"]),
            "database.user": str(parts["user"]),
            "database.password": str(parts["password"]),
            "database.dbname": str(parts["dbname"]),
            "topic.creation.default.partitions": str(partitions),
            "topic.creation.default.replication.factor": "1",
        }
        if row_bytes is not None:
            connector |= _for_wide_rows(row_bytes)
        worker = (
            _WORKER
            | ({} if row_bytes is None else _WIDE_WORKER)
            | {
                "bootstrap.servers": bench.stack.endpoints.bootstrap_servers,
                "listeners": f"http://127.0.0.1:{free_port()}",
                "offset.storage.file.filename": str(bench.place / f"{name}.offsets"),
            }
        )
        self._files = [self._properties("worker", worker), self._properties("connector", connector)]
        log4j = bench.kept_private(f"{name}-log4j2.properties", _LOG4J.format(log=self._log))
        self._options = ["-Xms256m", "-Xmx2g", "-XX:+ExitOnOutOfMemoryError", f"-Dlog4j2.configurationFile={log4j}"]

    def _properties(self, kind: str, values: dict[str, str]) -> Path:
        text = "".join(f"{key}={value}\n" for key, value in values.items())
        return self._bench.kept_private(f"{self.name}-{kind}.properties", text)

    @contextlib.contextmanager
    def running(self) -> Iterator[Guarded]:
        """Run it; it is stopped in order at the end, so that it resumes next time."""
        self._log.unlink(missing_ok=True)
        main = "org.apache.kafka.connect.cli.ConnectStandalone"
        words: list[str | Path] = [find_java(), *self._options, "-cp", f"{debezium_home()}/*", main, *self._files]
        process = self._bench.start(self.name, words)
        try:
            yield process
        except HeadraceError as error:
            if process.poll() is None:
                raise
            raise HeadraceError(f"Debezium ended: {self._last_error() or process.last_lines()}", remedy="") from error
        finally:
            process.stop(signal.SIGTERM, _STOP_SECONDS)

    def _last_error(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        errors = [line for line in lines if " ERROR " in line or line.startswith("Caused by: ")]
        return " / ".join(errors[-3:])[:1000]

    def streams_from_here(self) -> None:
        """Start it, wait until a change has arrived, and stop it: later changes wait in its slot."""
        with self.running() as process:
            await_change(self._site, EndWatch(self._site.settings.kafka, self.topics), process)

    def timed(self, events: int) -> Run:
        """Run it until `events` more records are in its topics; raises HeadraceError if it has sent more in the end.

        The time without startup begins, for a snapshot, when its log reports that it reads the first table; else with
        the first record in a topic.
        """
        ends = EndWatch(self._site.settings.kafka, self.topics)
        before = now = ends.count()
        of_servers = Meter.started(servers(self._bench))
        started, clock = time.monotonic(), time.time()
        began = 0.0
        with self.running() as process:
            own = Meter.started({"Debezium": process.pid})
            for _ in self._bench.watched("Debezium", process):
                now = ends.count()
                if now > before and not began:
                    began = time.monotonic()
                if now >= before + events:
                    break
            ended = time.monotonic()
            peak = peak_megabytes(process.pid)
            cpu = own.read() | of_servers.read()
        if (come := ends.count() - before) != events:
            raise HeadraceError(f"{come} changes came from Debezium, but {events} were made")
        found = _COPY_BEGINS.search(self._log.read_text(errors="replace"))
        if found:
            began = started + int(found[1]) / 1000 - clock
        return Run(events, ended - began, ended - started, peak, cpu)

    def drop(self) -> None:
        """Remove its slot, its publication and its topics."""
        drop_slot(self._bench, self._site.dsn, self.name)
        with self._bench.sql(self._site.dsn) as connection:
            connection.execute(f"DROP PUBLICATION IF EXISTS {self.name}")
        delete_topics(self._site.settings.kafka, self.topics)
