"""The servers and processes of one round, each at its node in the network."""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import sql

from consumers.testing.waiting import until
from infra.settings.file import load_settings
from infra.settings.model import Settings
from infra.stack.brokers.broker import Cluster, EmbeddedBroker, kafka_uuid
from infra.stack.brokers.broker_settings import HEAP, SMALL_HEAP, of_cluster
from infra.stack.postgresql.server import EmbeddedPostgres
from infra.stack.processes.keeper import Keeper
from infra.stack.processes.ports import free_ports
from schemas.topics import table_topic
from tests.chaos import witness
from tests.chaos.forked import Service
from tests.chaos.path import build, tables
from tests.chaos.path.histories import COPIES, MIGRATIONS, RESETS
from tests.chaos.path.namespaces import Network, entered, missing, settle
from tests.chaos.path.targets import (
    BROKER,
    CONSUMER,
    PRIMARY,
    PRODUCER,
    REGISTRY,
    STANDBY,
    Registry,
    ServerTarget,
    ServiceTarget,
    Target,
    preparing,
)
from tests.consumers.container_repositories import write_settings

DATABASE: Final = "gitlabhq"
_CONSUMERS: Final = 2
"""Per migration."""
_FIRST_ROWS: Final = 500
_PARTITIONS: Final = 4
_KEEP_WAL: Final = {"fsync": "on", "wal_keep_size": "64MB"}


class World:
    """Everything that a round needs, running; `violation` is planted in headrace's processes."""

    def __init__(self, seed: int, *, brokers: int, violation: str | None = None, network: bool = True) -> None:
        build.add_migrations()
        self.name = f"h{seed}x{random.randrange(16**4):04x}"
        self.directory = Path(tempfile.mkdtemp(prefix="headrace-path-"))
        self.directory.chmod(0o711)
        self.logs = self.directory / "logs"
        self.logs.mkdir()
        self.services: list[ServiceTarget] = []
        self._violation = violation
        self._closing = contextlib.ExitStack()
        try:
            self._build(brokers, network)
        except BaseException:
            self.close()
            raise

    def _build(self, brokers: int, network: bool) -> None:
        keeper = Keeper(remove=self.directory)
        self._closing.callback(keeper.close)
        names = [f"kafka{number}" for number in range(brokers)]
        nodes = (*names, PRIMARY, STANDBY, REGISTRY)
        # Of two servers with one port, the second would be reached at the first's address.
        chosen = free_ports(len(nodes) + brokers)
        ports = dict(zip(nodes, chosen, strict=False))
        both = {name: [ports[name], other] for name, other in zip(names, chosen[len(nodes) :], strict=True)}
        owned: dict[str, list[int]] = {**{node: [port] for node, port in ports.items()}, **both}
        owned |= {PRODUCER: [], **{f"{CONSUMER}{number}": [] for number in range(_CONSUMERS * len(MIGRATIONS))}}
        self.network = Network(owned) if network and missing() is None else None
        if self.network is not None:
            self._closing.callback(self.network.close)
            settle(self.network.hub)
        cluster = Cluster(
            of_cluster(brokers),
            HEAP if brokers == 1 else SMALL_HEAP,
            kafka_uuid(),
            {number: place[0] for number, place in enumerate(both.values(), 1)},
            {number: place[1] for number, place in enumerate(both.values(), 1)},
        )
        self.kafkas = [
            EmbeddedBroker(number, self.directory / name, keeper, cluster) for number, name in enumerate(names, 1)
        ]
        self.primary = EmbeddedPostgres(self.directory / PRIMARY, keeper, port=ports[PRIMARY], settings=_KEEP_WAL)
        self.registry = Registry(self.directory, keeper, ports[REGISTRY])
        self.servers: list[Target] = [
            *(
                ServerTarget(BROKER, name, kafka, self.place(name))
                for name, kafka in zip(names, self.kafkas, strict=True)
            ),
            ServerTarget(PRIMARY, PRIMARY, self.primary, self.place(PRIMARY)),
            ServerTarget(REGISTRY, REGISTRY, self.registry, self.place(REGISTRY)),
        ]
        _at_once([server.begin for server in self.servers])
        if self.network is not None:
            self._let_in(self.network.addresses)
        self.dsn = self.primary.create_database(DATABASE)
        with self.connect() as connection:
            tables.make(connection)
            witness.begin(connection)
            connection.execute(
                "INSERT INTO public.container_repositories"
                " (id, project_id, name, migration_state, migration_skipped_reason)"
                " SELECT k, 1, 'first ' || k, CASE WHEN k %% 3 = 0 THEN 'import_skipped' ELSE 'default' END,"
                " CASE WHEN k %% 3 = 0 THEN 2 END FROM generate_series(1, %s) k",
                (_FIRST_ROWS,),
            )
        with entered(self.place(STANDBY)):
            self.standby = self._copy(ports[STANDBY], keeper)
        self.servers.append(ServerTarget(STANDBY, STANDBY, self.standby, self.place(STANDBY)))
        self._make_synchronous()
        self.config = self._settings()
        self.settings: Settings = load_settings(self.config)
        self.topic = table_topic(self.settings.prefix, "gitlab_main", "main", "public", tables.TABLE)

    @property
    def targets(self) -> Sequence[Target]:
        return [*self.servers, *self.services]

    @property
    def hub(self) -> str | None:
        """The namespace of the harness and the application; None: namespaces are not used."""
        return None if self.network is None else self.network.hub

    def place(self, node: str) -> str | None:
        """Return a node's namespace; None: namespaces are not used."""
        return None if self.network is None else self.network.namespace(node)

    @contextlib.contextmanager
    def connect(self) -> Iterator[psycopg.Connection[Any]]:
        """Yield a session of the harness, whose commits wait for no standby."""
        with psycopg.connect(
            self.dsn, autocommit=True, application_name="harness", options="-c synchronous_commit=local"
        ) as connection:
            yield connection

    def produce(self) -> None:
        """Start the producer."""
        self._serve(PRODUCER, PRODUCER, "produce", "main")

    def until_ledger(self) -> None:
        """Wait until headrace's tables exist, and witness each move of the ledger from the first on."""
        with self.connect() as connection:

            def there() -> bool:
                return connection.execute("SELECT to_regclass('headrace.progress')").fetchone() != (None,)

            until(there, "the ledger to exist")
            witness.follow_ledger(connection)

    def consume(self) -> None:
        """Start the consumers of both migrations."""
        for number in range(_CONSUMERS * len(MIGRATIONS)):
            self._serve(CONSUMER, f"{CONSUMER}{number}", "consume", MIGRATIONS[number % len(MIGRATIONS)])

    def consumers(self, migration: str) -> list[ServiceTarget]:
        """Return the consumers of one migration."""
        return [service for service in self.services if service.service.arguments[1] == migration]

    def is_synchronous(self) -> bool:
        """Return whether commits that wait for the standby are acknowledged."""
        with self.connect() as connection:
            return (
                connection.execute(
                    "SELECT FROM pg_stat_replication WHERE application_name = %s AND state = 'streaming'"
                    " AND sync_state = 'quorum'",
                    (STANDBY,),
                ).fetchone()
                is not None
            )

    def stop(self) -> None:
        """Stop headrace's processes, and wait until they have ended."""
        _at_once([service.service.stop for service in self.services])

    def close(self) -> None:
        """Stop and remove everything."""
        for service in self.services:
            service.thaw()
            service.service.kill()
        if self.services:
            _at_once([service.service.stop for service in self.services])
        for server in getattr(self, "servers", ()):
            with contextlib.suppress(Exception):
                server.thaw()
        self._closing.close()

    def preparing(self, namespace: str | None) -> Callable[[], None]:
        """Return the function that makes a process part of this round, in a namespace."""
        return preparing(namespace, self._violation)

    def tails(self, lines: int = 8) -> Iterator[str]:
        """Yield the end of each process's log."""
        for log in sorted(self.logs.glob("*.err")):
            text = log.read_text(errors="replace").splitlines()[-lines:]
            yield "\n".join((f"--- {log.name}", *text))

    def _serve(self, role: str, node: str, *arguments: str) -> None:
        prepare = self.preparing(self.place(node))
        service = Service(self.logs, *arguments, "--config", str(self.config), prepare=prepare)
        self.services.append(ServiceTarget(role, node, service))

    def _copy(self, port: int, keeper: Keeper) -> EmbeddedPostgres:
        """Create the standby, on a port that the network knows."""
        standby = EmbeddedPostgres(self.directory / STANDBY, keeper, primary=self.primary, port=port)
        standby._copy_from(self.primary, STANDBY)
        standby.start()
        return standby

    def _let_in(self, addresses: str) -> None:
        """Have the primary and its standby accept connections from other nodes like local ones."""
        with (self.primary.data / "pg_hba.conf").open("a") as rules:
            rules.writelines(f"host {database} all {addresses} scram-sha-256\n" for database in ("all", "replication"))
        with entered(self.place(PRIMARY)), self.primary.connect() as connection:
            connection.execute("SELECT pg_reload_conf()")

    def _make_synchronous(self) -> None:
        with self.primary.connect() as connection:
            name = sql.Literal(f'ANY 1 ("{STANDBY}")')
            connection.execute(sql.SQL("ALTER SYSTEM SET synchronous_standby_names = {}").format(name))
            connection.execute("SELECT pg_reload_conf()")
        until(self.is_synchronous, "the standby to be synchronous")

    def _settings(self) -> Path:
        pace = {"batch_size": 400, "sub_batch_size": 20, "health": {"autovacuum": False}, "health_seconds": 600.0}
        return write_settings(
            self.directory / "headrace.toml",
            {
                "prefix": self.name,
                "kafka": {
                    "bootstrap_servers": ",".join(kafka.bootstrap_servers for kafka in self.kafkas),
                    "partitions": _PARTITIONS,
                },
                "registry": {"url": self.registry.url},
                "databases": {
                    "main": {
                        "dsn": self.dsn,
                        "gitlab_schemas": ["gitlab_main"],
                        "tables": [f"public.{tables.TABLE}"],
                        "snapshot": {"chunk_rows": 100},
                    }
                },
                "migrations": {RESETS: {"continuous": True, **pace}, COPIES: pace},
            },
        )


def _at_once(actions: Sequence[Callable[[], None]]) -> None:
    """Run all at the same time, each to its end; raises the first error."""
    with ThreadPoolExecutor(len(actions)) as pool:
        running = [pool.submit(action) for action in actions]
    for action in running:
        action.result()
