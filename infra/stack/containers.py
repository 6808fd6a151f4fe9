"""The stack in Docker containers, from the official images, by testcontainers: for tests on a machine with Docker.

Host ports are chosen before the containers start: a port that Docker chooses changes at every restart, and Kafka must
know the port to advertise.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import psycopg
from docker.errors import DockerException  # type: ignore[import-untyped]  # it ships no types
from testcontainers.core.container import DockerContainer

from infra.stack.brokers.broker import serving
from infra.stack.brokers.broker_settings import SETTINGS as KAFKA_SETTINGS
from infra.stack.brokers.jars import KAFKA_VERSION
from infra.stack.interface import Endpoints
from infra.stack.postgresql.databases import SUPERUSER, DatabaseServer
from infra.stack.postgresql.server import SETTINGS as POSTGRES_SETTINGS
from infra.stack.processes.ports import free_port
from schemas.errors import Unavailable

KAFKA_IMAGE = f"apache/kafka:{KAFKA_VERSION}"
POSTGRES_IMAGE = "postgres:18"
READY_SECONDS = 180.0
STOP_SECONDS = 30


class _Container:
    """A container that can be stopped, killed and restarted with its data."""

    def __init__(self, container: DockerContainer) -> None:
        self._container = container
        self._created = False

    def start(self) -> None:
        if not self._created:
            self._container.start()
            self._created = True
        else:
            self._container.get_wrapped_container().start()
        deadline = time.monotonic() + READY_SECONDS
        while not self.serves():
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"the container of {self._container.image} did not serve within {READY_SECONDS:.0f} s",
                    remedy="see `docker logs`",
                )
            time.sleep(0.05)

    def stop(self) -> None:
        if self._created:
            self._container.get_wrapped_container().stop(timeout=STOP_SECONDS)

    def kill(self) -> None:
        if self._created:
            with contextlib.suppress(DockerException):  # already down
                self._container.get_wrapped_container().kill()
            self._container.get_wrapped_container().wait()

    def restart(self) -> None:
        self.stop()
        self.start()

    def remove(self) -> None:
        """Stop it and delete its data."""
        self._container.stop()

    def serves(self) -> bool:
        """Return whether it answers clients."""
        raise NotImplementedError


class ContainerKafka(_Container):
    """A broker in a container."""

    def __init__(self) -> None:
        self._port = free_port()
        container = DockerContainer(KAFKA_IMAGE).with_bind_ports(9092, self._port)
        self._host = container.get_docker_client().host()
        for name, value in kafka_environment(f"{self._host}:{self._port}").items():
            container.with_env(name, value)
        super().__init__(container)

    @property
    def bootstrap_servers(self) -> str:
        return f"{self._host}:{self._port}"

    def serves(self) -> bool:
        return serving(self.bootstrap_servers) is not None


class ContainerPostgres(_Container, DatabaseServer):
    """A database server in a container."""

    def __init__(self) -> None:
        self._port = free_port()
        self._password = secrets.token_urlsafe(24)
        container = (
            DockerContainer(POSTGRES_IMAGE)
            .with_bind_ports(5432, self._port)
            .with_env("POSTGRES_PASSWORD", self._password)
            .with_command(postgres_command())
        )
        self._host = container.get_docker_client().host()
        super().__init__(container)

    def dsn(self, database: str = "postgres") -> str:
        return f"postgresql://{SUPERUSER}:{self._password}@{self._host}:{self._port}/{database}"

    def serves(self) -> bool:
        # while the image prepares its data directory the server listens only on its socket
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True


class ContainerStack:
    """A broker and a database server in containers; made by `started`."""

    def __init__(self) -> None:
        try:
            self.kafka = ContainerKafka()
            self.postgres = ContainerPostgres()
        except DockerException as error:
            raise Unavailable(
                f"no Docker engine answers: {error}", remedy="start Docker, or use the embedded stack"
            ) from error
        self._closed = False

    @classmethod
    def started(cls) -> Self:
        """Start both, pulling the images at first use."""
        stack = cls()
        try:
            stack.kafka.start()
            stack.postgres.start()
        except BaseException:
            stack.close()
            raise
        return stack

    @property
    def endpoints(self) -> Endpoints:
        return Endpoints(self.kafka.bootstrap_servers, self.postgres.dsn())

    def close(self) -> None:
        """Remove both containers with their data; idempotent."""
        if self._closed:
            return
        self._closed = True
        removals: list[Callable[[], None]] = [self.kafka.remove, self.postgres.remove]
        for remove in removals:
            remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def kafka_environment(advertised: str) -> dict[str, str]:
    """Return the image's environment: each setting in capitals with underscores, prefixed with `KAFKA_`.

    Clients connect to `advertised`; the broker itself, which cannot reach that from inside, to a separate listener.
    """
    settings = dict(KAFKA_SETTINGS) | {
        "controller.quorum.voters": "1@localhost:9093",
        "listeners": "PLAINTEXT://0.0.0.0:9092,BROKER://localhost:29092,CONTROLLER://localhost:9093",
        "advertised.listeners": f"PLAINTEXT://{advertised},BROKER://localhost:29092",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "BROKER",
        "log.dirs": "/var/lib/kafka/data",
    }
    return {f"KAFKA_{name.upper().replace('.', '_')}": value for name, value in settings.items()}


def postgres_command() -> list[str]:
    """Return the server's command line with the embedded server's settings."""
    return ["postgres", *(word for name, value in POSTGRES_SETTINGS.items() for word in ("-c", f"{name}={value}"))]
