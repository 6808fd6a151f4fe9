"""Walks a Gitaly node's storage through its gRPC method `gitaly.InternalGitaly/WalkRepos`.

The two messages are small enough to be encoded and decoded here (protobuf's wire format: "Encoding" in its
documentation), without generated code. grpcio is an optional dependency, `headrace[gitaly]`.
"""

from __future__ import annotations

import hashlib
import hmac
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

from infra.settings.storage_settings import StorageSettings
from producers.walk.directory import Repository, is_gitalys_own
from schemas.errors import HeadraceError, Interrupted, Malformed, PreflightFailed, Unavailable, UsageError

METHOD: Final = "/gitaly.InternalGitaly/WalkRepos"

_OPTIONS: Final = (
    # Detects a dead node within a minute; Gitaly allows pings 20 seconds apart.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # http_proxy is for outside hosts, and a storage's node is never one.
    ("grpc.enable_http_proxy", 0),
)

_SIXTY_FOUR_BITS: Final = 1 << 64
_FIXED: Final = {1: 8, 5: 4}
"""Protobuf's fixed-size wire types → their size in bytes."""


class UnknownStorage(UsageError):
    """Use the storage's name from the node's own configuration under virtual_storages."""


class GitalyUnavailable(Unavailable):
    """Check that Gitaly runs there and that the storage's address in the settings is right, then walk again."""


def walk_gitaly(storage: str, settings: StorageSettings, stop: threading.Event) -> Generator[Repository, None, None]:
    """Yield the repositories of `storage` in the node's order, which is that of `walk_directory`.

    Raises UnknownStorage, GitalyUnavailable, PreflightFailed for a wrong token, Interrupted soon after `stop` is
    set, Malformed for an invalid response, and HeadraceError for any other error of the node.
    """
    grpc = _grpc()
    assert settings.address is not None
    with _channel(grpc, settings.address) as channel:
        call = channel.unary_stream(METHOD)(
            _string_field(1, storage.encode()), metadata=_authorization(settings), timeout=None
        )
        try:
            with _cancelled_by(stop, call):
                for message in call:
                    repository = parse_response(message)
                    if not is_gitalys_own(repository.path):
                        yield repository
        except grpc.RpcError as error:
            if stop.is_set():
                raise Interrupted(f"the walk of {storage} was stopped before its end") from None
            raise _translate(grpc, error, storage, settings.address) from None
        finally:
            call.cancel()


def authorization(token: str, seconds: int) -> str:
    """Return the header of Gitaly's authentication, version 2, for a time in seconds since 1970."""
    digest = hmac.new(token.encode(), str(seconds).encode(), hashlib.sha256).hexdigest()
    return f"Bearer v2.{digest}.{seconds}"


def parse_response(message: bytes) -> Repository:
    """Return the repository in a WalkReposResponse; a missing field is empty or zero, as always in protobuf.

    Raises Malformed for any other message.
    """
    path, modified = b"", b""
    try:
        for number, value in _fields(message):
            if number == 1 and isinstance(value, bytes):
                path = value
            elif number == 2 and isinstance(value, bytes):
                modified += value  # protobuf merges the fields of a message that occurs twice
        return Repository(path, _timestamp(modified))
    except (IndexError, ValueError) as error:
        raise Malformed("a WalkReposResponse is not a valid protobuf message") from error


def _timestamp(message: bytes) -> int:
    """Return a google.protobuf.Timestamp in microseconds since 1970."""
    parts = {number: value for number, value in _fields(message) if isinstance(value, int)}
    return _signed(parts.get(1, 0), 64) * 1_000_000 + _signed(parts.get(2, 0), 32) // 1000


def _signed(number: int, bits: int) -> int:
    """Return the lowest bits of a varint as a signed number of so many bits."""
    number %= 1 << bits
    return number - (1 << bits) if number >> bits - 1 else number


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and undecoded value of each field that is a varint or length-delimited.

    Skips fixed-size fields, which these messages don't have, as protobuf skips unknown fields. Raises ValueError or
    IndexError for invalid bytes.
    """
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        kind = tag & 7
        if kind == 0:
            value, position = _varint(message, position)
            yield tag >> 3, value
            continue
        length = _FIXED.get(kind)
        if kind == 2:
            length, position = _varint(message, position)
        elif length is None:
            raise ValueError("a group, or an unknown wire type")
        end = position + length
        if end > len(message):
            raise IndexError("a field longer than its message")
        if kind == 2:
            yield tag >> 3, message[position:end]
        position = end


def _varint(message: bytes, position: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        byte = message[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number % _SIXTY_FOUR_BITS, position
    raise ValueError("a varint of more than ten bytes")


def _string_field(number: int, value: bytes) -> bytes:
    length, encoded = len(value), bytearray((number << 3 | 2,))
    while length >= 0x80:
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    encoded.append(length)
    return bytes(encoded) + value


def _authorization(settings: StorageSettings) -> Sequence[tuple[str, str]]:
    token = settings.token.get_secret_value() if settings.token else ""
    # A node without a token accepts every call, with or without the header.
    return (("authorization", authorization(token, int(time.time()))),) if token else ()


def _grpc() -> ModuleType:
    try:
        # Optional, and slow to import when only directories are walked.
        import grpc  # noqa: PLC0415
    except ImportError:
        raise UsageError(
            "a storage with an address needs grpcio, which is not installed", remedy="install headrace[gitaly]"
        ) from None
    module: ModuleType = grpc
    return module


@contextmanager
def _channel(grpc: ModuleType, address: str) -> Iterator[Any]:
    scheme, _, rest = address.partition(":")
    target = address if scheme == "unix" else rest.removeprefix("//")
    if scheme == "tls":
        # Trusts grpc's own CA certificates, or those in GRPC_DEFAULT_SSL_ROOTS_FILE_PATH.
        channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(), options=_OPTIONS)
    else:
        channel = grpc.insecure_channel(target, options=_OPTIONS)
    with channel:
        yield channel


@contextmanager
def _cancelled_by(stop: threading.Event, call: Any) -> Iterator[None]:
    """Cancel the call when `stop` is set, even while the node sends nothing."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            if stop.is_set():
                call.cancel()
                return

    watcher = threading.Thread(target=watch, name="gitaly walk", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _translate(grpc: ModuleType, error: Any, storage: str, address: str) -> HeadraceError:
    code, details = error.code(), " ".join((error.details() or "").split())
    if code is grpc.StatusCode.NOT_FOUND:
        return UnknownStorage(f"Gitaly at {address} has no storage {storage}: {details}")
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return PreflightFailed(
            f"Gitaly at {address} refuses the token of storage {storage}: {details}",
            remedy="set the storage's token to the node's auth token, and check that both clocks agree",
        )
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return GitalyUnavailable(f"Gitaly at {address} does not answer: {details}")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return UsageError(
            f"the server at {address} does not offer WalkRepos: {details}",
            remedy="set the storage's address to the Gitaly node itself",
        )
    return HeadraceError(
        f"Gitaly at {address} ended the walk of {storage}: {code.name} {details}", remedy="see the node's log"
    )
