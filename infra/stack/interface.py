"""Interface of a stack, whether its servers are child processes or containers."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from schemas.lazy_dataclass import dataclass

if TYPE_CHECKING:
    import psycopg


@dataclass(frozen=True)
class Endpoints:
    """Addresses of the servers of a stack; `dsn` is the PostgreSQL superuser's, with its password."""

    bootstrap_servers: str
    dsn: str

    def __repr__(self) -> str:  # reprs end up in logs
        return f"Endpoints(bootstrap_servers={self.bootstrap_servers!r}, dsn=<hidden>)"


class Server(Protocol):
    """A server that can be stopped and killed; it keeps its port and its data."""

    def start(self) -> None:
        """Start it and wait until it serves; does nothing if it runs."""

    def stop(self) -> None:
        """Shut it down cleanly; does nothing if it is down."""

    def kill(self) -> None:
        """Kill it, as in a power failure; does nothing if it is down."""

    def restart(self) -> None:
        """Stop it, unless it is down already, and start it again."""


class KafkaServer(Server, Protocol):
    """A broker."""

    @property
    def bootstrap_servers(self) -> str: ...


class PostgresServer(Server, Protocol):
    """A database server."""

    def dsn(self, database: str = "postgres") -> str:
        """Return the URL of one of its databases, for its superuser, with the password."""

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        """Open an autocommit connection."""

    def create_database(self, name: str, template: str | None = None) -> str:
        """Create a database, empty or as a copy of `template`, and return its dsn."""

    def drop_database(self, name: str) -> None:
        """Drop a database with its replication slots and its clients, if it exists."""


class Stack(Protocol):
    """Kafka and PostgreSQL, running until close()."""

    @property
    def endpoints(self) -> Endpoints: ...

    @property
    def kafka(self) -> KafkaServer: ...

    @property
    def postgres(self) -> PostgresServer: ...

    def close(self) -> None:
        """Stop both; idempotent."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
