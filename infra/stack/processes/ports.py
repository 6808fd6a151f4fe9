"""Chooses TCP ports on the loopback interface for the embedded servers."""

from __future__ import annotations

import random
import socket
from collections.abc import Collection

from schemas.errors import UsageError

# Below the ephemeral ports (from 32768 on Linux, 49152 elsewhere): any client could take a port in that range while its
# server restarts.
FIRST, LAST = 15000, 32000


def is_free(port: int) -> bool:
    """Return whether a server could listen on 127.0.0.1:`port` now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: TIME_WAIT is no obstacle
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """Return a port that is free now; another process may take it before the caller listens on it."""
    for _ in range(1000):
        port = random.randrange(FIRST, LAST)  # noqa: S311  not a secret
        if is_free(port):
            return port
    raise UsageError(
        f"no free port on 127.0.0.1 between {FIRST} and {LAST}", remedy="stop some servers that use these ports"
    )


def free_ports(count: int, others: Collection[int] = ()) -> list[int]:
    """Return as many distinct ports, none of `others`, each free now: two calls of free_port() may return the same."""
    chosen: set[int] = set()
    while len(chosen) < count:
        chosen |= {free_port()} - set(others)
    return list(chosen)


def require_free(port: int, server: str, option: str) -> None:
    """Raise UsageError if `port`, set with `option`, is taken."""
    if not is_free(port):
        raise UsageError(
            f"port {port} for {server} is taken by another program",
            remedy=f"stop that program, or choose another port with {option} (0: any free one)",
        )
