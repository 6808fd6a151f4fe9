"""Runs the console: binds its address, and serves until it is stopped."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import uvicorn

from consumers.web.application import application
from consumers.web.impatient_protocol import ImpatientProtocol
from consumers.web.observation import Observation
from consumers.web.operator_requests import OperatorRequests
from consumers.web.request_guard import Access, RequestGuard
from infra.settings.model import Settings
from schemas.errors import SettingsError

_CONNECTIONS: Final = 128
"""More at a time are answered with 503."""
_IDLE_SECONDS: Final = 30
_END_SECONDS: Final = 1
_BACKLOG: Final = 128


@contextmanager
def serving(settings: Settings, address: str, port: int, access: Access, stopping: threading.Event) -> Iterator[int]:
    """Serve while inside; provides the port. `stopping` also ends what a request does in steps.

    Raises SettingsError if it cannot listen.
    """
    with _listening(address, port) as listener:
        observation = Observation(settings)
        made = application(observation, OperatorRequests(settings, stopping), access)
        server = uvicorn.Server(_configuration(RequestGuard(made, access)))
        thread = threading.Thread(
            target=lambda: asyncio.run(server.serve(sockets=[listener])), name="console", daemon=True
        )
        observation.start()
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            stopping.set()
            server.should_exit = True
            observation.close()
            thread.join(2 * _END_SECONDS)


def _listening(address: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((address, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {address} port {port}: {error.strerror}", remedy="choose another with --listen"
        ) from error


def _configuration(guard: RequestGuard) -> uvicorn.Config:
    # headrace's log has what an operator does; a log of requests would only say that pages ask every second.
    logging.getLogger("uvicorn").addHandler(logging.NullHandler())
    return uvicorn.Config(
        guard,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        ws="none",
        http=ImpatientProtocol,
        loop="asyncio",
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=_END_SECONDS,
    )
