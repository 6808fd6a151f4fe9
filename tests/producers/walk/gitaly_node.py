"""A Gitaly node for the tests: a real gRPC server with WalkRepos, which checks the token as Gitaly does."""

from __future__ import annotations

import hashlib
import hmac
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc

from producers.walk.gitaly import METHOD

Walk = Callable[[], Iterable[bytes]]
"""The response of a storage: serialized WalkReposResponse messages."""

SERVICE, _, NAME = METHOD[1:].partition("/")


class Node:
    """Serves the given storages by name; requires `token` unless it is empty."""

    def __init__(self, storages: Mapping[str, Walk], token: str = "") -> None:
        self._storages = storages
        self._token = token
        self.cancelled = threading.Event()
        """Set when a client ended a call."""

    def walk(self, request: bytes, context: Any) -> Iterator[bytes]:
        context.add_callback(self.cancelled.set)
        metadata = dict(context.invocation_metadata())
        if self._token and not self._granted(metadata.get("authorization", "")):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "authentication required")
        # field 1, a string shorter than 128 bytes
        assert request[0] == 0x0A
        assert request[1] == len(request) - 2
        name = request[2:].decode()
        if name not in self._storages:
            context.abort(grpc.StatusCode.NOT_FOUND, f'looking up storage: storage name\n"{name}" not found')
        yield from self._storages[name]()

    def _granted(self, header: str) -> bool:
        bearer, _, rest = header.partition(" ")
        if rest.count(".") != 2:
            return False
        version, digest, stamp = rest.split(".")
        right = hmac.new(self._token.encode(), stamp.encode(), hashlib.sha256).hexdigest()
        fresh = abs(time.time() - int(stamp)) < 30
        return (bearer, version) == ("Bearer", "v2") and hmac.compare_digest(digest, right) and fresh


@contextmanager
def serving(node: Node, address: str = "127.0.0.1:0", credentials: Any = None, method: str = NAME) -> Iterator[int]:
    """Serve until the end of the block; yields the port."""
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    handler = grpc.unary_stream_rpc_method_handler(node.walk)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, {method: handler})])
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()
