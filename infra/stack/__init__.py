"""Kafka and PostgreSQL started and stopped by headrace, for demos, tests and development.

Two kinds with one interface, `Stack`: `embedded_stack()` (child processes, nothing to install) and
`container_stack()` (Docker, official images). Neither outlives its owner, except the stack of `headrace up`
(up_command.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from infra.stack.extra import require_stack
from infra.stack.interface import Endpoints, KafkaServer, PostgresServer, Stack

if TYPE_CHECKING:
    from infra.stack.embedded import EmbeddedStack
else:

    def __getattr__(name: str) -> object:
        """Import `EmbeddedStack`, which needs the extra `stack`, when it is used: the interface does not."""
        if name != "EmbeddedStack":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        require_stack()
        from infra.stack import embedded  # noqa: PLC0415 - see above

        return embedded.EmbeddedStack


__all__ = [
    "EmbeddedStack",
    "Endpoints",
    "KafkaServer",
    "PostgresServer",
    "Stack",
    "container_stack",
    "embedded_stack",
]


def embedded_stack(directory: Path | None = None, *, brokers: int = 1, fsync: bool = True) -> EmbeddedStack:
    """Start Kafka and PostgreSQL as child processes, with their data in `directory` or a temporary one.

    With several brokers (3 or 5) each record has three replicas and is acknowledged by two; `stack.kafka.brokers` has
    each by its number, to be killed, frozen and restarted. With `fsync` off, PostgreSQL's data survives the death of
    its processes but not of the machine; a temporary directory is in memory then, where there is room. It is removed
    at the end, even if this process is killed. Use it as a context manager, or call close(). Raises Unavailable or
    UsageError if a server does not start, and StackNotInstalled without the extra `stack`.
    """
    require_stack()
    from infra.stack.embedded import EmbeddedStack  # noqa: PLC0415 - see above

    return EmbeddedStack.started(directory, kafka_ports=(0,) * brokers, fsync=fsync)


def container_stack() -> Stack:
    """Start Kafka and PostgreSQL in containers; raises Unavailable when no Docker engine answers."""
    # testcontainers is a development dependency: the application does not need it
    from infra.stack.containers import ContainerStack  # noqa: PLC0415

    return ContainerStack.started()
