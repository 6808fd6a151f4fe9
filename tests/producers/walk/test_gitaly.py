"""The walk through Gitaly's gRPC, against a real server in this process."""

from __future__ import annotations

import datetime
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from infra.settings.storage_settings import StorageSettings
from producers.walk.directory import Repository, walk_directory
from producers.walk.gitaly import (
    GitalyUnavailable,
    UnknownStorage,
    authorization,
    parse_response,
    walk_gitaly,
)
from schemas.errors import HeadraceError, Interrupted, Malformed, PreflightFailed, Unavailable, UsageError
from tests.producers.storages import repository
from tests.producers.walk.gitaly_node import Node, serving

# As google.protobuf encodes relative_path "@hashed/a.git", modification_time {seconds: 1700000000, nanos: 123456789}.
RESPONSE = bytes.fromhex("0a0d406861736865642f612e676974120b0880e2cfaa0610959aef3a")
REPOSITORY = Repository(b"@hashed/a.git", 1_700_000_000_123_456)


def response(path: str) -> bytes:
    raw = path.encode()
    return b"\x0a" + bytes((len(raw),)) + raw


def settings(port: int, token: str | None = None, scheme: str = "tcp", host: str = "127.0.0.1") -> StorageSettings:
    return StorageSettings.model_validate({"address": f"{scheme}://{host}:{port}", "token": token})


def walked(storage: StorageSettings, name: str = "gitaly-0") -> list[Repository]:
    return list(walk_gitaly(name, storage, threading.Event()))


def test_repositories_come_in_the_nodes_order() -> None:
    many = [response(f"{n}.git") for n in range(1000)]
    with serving(Node({"gitaly-0": lambda: [RESPONSE, *many]})) as port:
        found = walked(settings(port))
    assert found[0] == REPOSITORY
    assert found[1:] == [Repository(b"%d.git" % n, 0) for n in range(1000)]


def test_both_walks_skip_only_gitalys_temporary_repositories(tmp_path: Path) -> None:
    kept = ["+gitaly.git", "+gitaly2/a.git", "@hashed/+gitaly/b.git", "c/+gitaly/tmp/d.git"]
    everything = ["+gitaly/e.git", "+gitaly/tmp/repo123.git", *kept]
    for path in everything:
        repository(tmp_path, path)
    with serving(Node({"gitaly-0": lambda: [response(path) for path in everything]})) as port:
        asked = [found.path.decode() for found in walked(settings(port))]
    read = [os.fsdecode(found.path) for found in walk_directory(str(tmp_path))]
    assert asked == read == kept


def test_storage_with_only_temporary_repositories_is_empty(tmp_path: Path) -> None:
    with serving(Node({"gitaly-0": lambda: [response("+gitaly/tmp/a.git"), response("+gitaly")]})) as port:
        assert walked(settings(port)) == []


def test_empty_storage_has_no_repositories() -> None:
    with serving(Node({"gitaly-0": list})) as port:
        assert walked(settings(port)) == []


def test_token_is_version_2_with_a_timestamp() -> None:
    with serving(Node({"gitaly-0": lambda: [RESPONSE]}, token="s3cret")) as port:
        assert walked(settings(port, "s3cret")) == [REPOSITORY]
        for wrong in (None, "another"):
            with pytest.raises(
                PreflightFailed, match="refuses the token of storage gitaly-0: authentication"
            ) as caught:
                walked(settings(port, wrong))
            assert "another" not in str(caught.value)


def test_header_matches_gitalys_signature() -> None:
    # printf 1700000000 | openssl dgst -sha256 -hmac s3cret
    digest = "b82d76a98690627a418267faa0be5e8830d04d82cc88b5450d2c0f32173127c5"
    assert authorization("s3cret", 1_700_000_000) == f"Bearer v2.{digest}.1700000000"


def test_node_without_a_token_accepts_a_call_with_one() -> None:
    with serving(Node({"gitaly-0": lambda: [RESPONSE]})) as port:
        assert walked(settings(port, "whatever")) == [REPOSITORY]


def test_unknown_storage_error_names_it_in_one_line() -> None:
    with serving(Node({"gitaly-1": list})) as port, pytest.raises(UnknownStorage) as caught:
        walked(settings(port))
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"Gitaly at tcp://127.0.0.1:{port} has no storage gitaly-0: looking up storage")


def test_unreachable_node_is_unavailable() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(GitalyUnavailable, match="does not answer") as caught:
            walked(settings(free.getsockname()[1]))
    assert isinstance(caught.value, Unavailable)


def test_node_failure_does_not_end_the_walk_normally() -> None:
    def walk() -> Iterator[bytes]:
        yield RESPONSE
        raise RuntimeError("the disk is gone")

    with serving(Node({"gitaly-0": walk})) as port:
        found = walk_gitaly("gitaly-0", settings(port), threading.Event())
        assert next(found) == REPOSITORY
        with pytest.raises(HeadraceError, match=r"ended the walk of gitaly-0: UNKNOWN .*the disk is gone"):
            next(found)


def test_server_without_walk_repos_is_refused() -> None:
    with serving(Node({}), method="Other") as port, pytest.raises(UsageError, match="does not offer WalkRepos"):
        walked(settings(port))


def test_invalid_message_is_malformed() -> None:
    with serving(Node({"gitaly-0": lambda: [RESPONSE, b"\x0a\x05abc"]})) as port, pytest.raises(Malformed):
        walked(settings(port))


def test_walk_of_a_silent_node_is_interruptible() -> None:
    silence = threading.Event()

    def walk() -> Iterator[bytes]:
        yield RESPONSE
        silence.wait()

    stop = threading.Event()
    node = Node({"gitaly-0": walk})
    with serving(node) as port:
        found = walk_gitaly("gitaly-0", settings(port), stop)
        assert next(found) == REPOSITORY
        stop.set()
        with pytest.raises(Interrupted, match="the walk of gitaly-0 was stopped before its end"):
            next(found)
        assert node.cancelled.wait(180)
        silence.set()


def test_abandoned_walk_cancels_its_call() -> None:
    node = Node({"gitaly-0": lambda: iter(lambda: RESPONSE, b"")})
    with serving(node) as port:
        found = walk_gitaly("gitaly-0", settings(port), threading.Event())
        next(found)
        found.close()
        assert node.cancelled.wait(180)


def test_node_is_reached_over_a_unix_socket(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/gitaly.socket"
    with serving(Node({"gitaly-0": lambda: [RESPONSE]}), address):
        assert walked(StorageSettings(address=address)) == [REPOSITORY]
        assert walked(StorageSettings(address=address.replace("unix:", "unix://"))) == [REPOSITORY]


def test_node_is_reached_over_tls_with_a_private_ca(tmp_path: Path) -> None:
    key, certificate = self_signed("localhost")
    (tmp_path / "roots.pem").write_bytes(certificate)
    credentials = grpc.ssl_server_credentials([(key, certificate)])
    with serving(Node({"gitaly-0": lambda: [RESPONSE]}, token="t"), "localhost:0", credentials) as port:
        with pytest.raises(GitalyUnavailable):
            walked(settings(port, "t", "tls", "localhost"))
        # grpc reads the variable once per process.
        child = subprocess.run(
            [sys.executable, "-c", CHILD, str(port)],
            env={**os.environ, "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(tmp_path / "roots.pem")},
            capture_output=True,
            text=True,
            check=False,
        )
    assert (child.stdout, child.returncode) == ("@hashed/a.git\n", 0), child.stderr


CHILD = """
import sys, threading
from infra.settings.storage_settings import StorageSettings
from producers.walk.gitaly import walk_gitaly
settings = StorageSettings(address=f"tls://localhost:{sys.argv[1]}", token="t")
for found in walk_gitaly("gitaly-0", settings, threading.Event()):
    print(found.path.decode())
"""


def self_signed(host: str) -> tuple[bytes, bytes]:
    """Return a key and a certificate for it, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return private, certificate.public_bytes(pem)


def test_missing_grpcio_error_names_the_extra() -> None:
    code = f"import sys; sys.modules['grpc'] = None\n{CHILD}"
    child = subprocess.run([sys.executable, "-c", code, "1"], capture_output=True, text=True, check=False)
    assert "needs grpcio, which is not installed; install headrace[gitaly]" in child.stderr


def test_unknown_fields_are_ignored() -> None:
    later = b"\x18\x01" + b"\x21" + bytes(8) + b"\x2d" + bytes(4) + b"\x32\x02hi"
    assert parse_response(later + RESPONSE + later) == REPOSITORY
    assert parse_response(b"") == Repository(b"", 0)


def test_known_fields_of_another_wire_type_are_skipped() -> None:
    fixed = b"\x15" + bytes(4) + b"\x11" + bytes(8) + b"\x0d" + bytes(4)
    assert parse_response(fixed + RESPONSE + fixed) == REPOSITORY


def test_repeated_timestamp_is_merged_with_32_bit_nanoseconds() -> None:
    seconds, nanos = b"\x12\x02\x08\x05", b"\x12\x0b\x10" + b"\xff" * 9 + b"\x01"
    assert parse_response(seconds + nanos) == Repository(b"", 5_000_000 - 1)


def test_time_before_1970_is_negative() -> None:
    minus_one_second = b"\x12\x0b\x08" + b"\xff" * 9 + b"\x01"
    assert parse_response(minus_one_second) == Repository(b"", -1_000_000)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_message_or_malformed(raw: bytes) -> None:
    with suppress(Malformed):
        assert isinstance(parse_response(raw), Repository)
