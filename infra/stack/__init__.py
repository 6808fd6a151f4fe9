"""Kafka and PostgreSQL started and stopped by headrace, for demos, tests and development.

Two kinds with one interface, `Stack`: `embedded_stack()` (child processes, nothing to install) and
`container_stack()` (Docker, official images). Neither outlives its owner, except the stack of `headrace up`
(up_command.py).
"""

from __future__ import annotations

from pathlib import Path

from infra.stack.embedded import EmbeddedStack
from infra.stack.interface import Endpoints, KafkaServer, PostgresServer, Stack

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
    its processes but not of the machine. A temporary directory is removed at the end, even if this process is killed.
    Use it as a context manager, or call close(). Raises Unavailable or UsageError if a server does not start.
    """
    return EmbeddedStack.started(directory, kafka_ports=(0,) * brokers, fsync=fsync)


def container_stack() -> Stack:
    """Start Kafka and PostgreSQL in containers; raises Unavailable when no Docker engine answers."""
    # testcontainers is a development dependency: the application does not need it
    from infra.stack.containers import ContainerStack  # noqa: PLC0415

    return ContainerStack.started()
