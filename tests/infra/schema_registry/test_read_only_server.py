"""The read-only registry over real HTTP, from a topic in memory; and requests of hostile clients."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from consumers.testing.waiting import until
from infra.schema_registry.read_only_server import ReadOnlyRegistry
from infra.schema_registry.subjects import FollowedSubjects
from infra.service.bounded_http import Limits
from schemas.errors import SettingsError
from tests.infra.schema_registry.test_subjects import A, B, Topic

READ_ONLY = {"error_code": 405, "message": "this registry is read-only: headrace's producers register the schemas"}
SECOND = b"GET /subjects HTTP/1.1\r\nHost: localhost\r\n\r\n"
"""Bytes that are the body of the request before them."""


@pytest.fixture
def topic() -> Topic:
    made = Topic()
    made.records = [(1, "t-key", A), (2, "t-value", B)]
    return made


@pytest.fixture
def server(topic: Topic) -> Iterator[ReadOnlyRegistry]:
    subjects = FollowedSubjects(topic.read)
    with ReadOnlyRegistry("127.0.0.1", 0, subjects, ["registry.example"]) as made:
        answering = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        answering.start()
        yield made
        made.shutdown()
        answering.join()
    topic.passing.set()
    subjects.close()


def ask(
    server: ReadOnlyRegistry, path: str, method: str = "GET", body: bytes | None = None, **headers: str
) -> tuple[int, Any]:
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)) as client:
        client.request(method, path, body, headers)
        answer = client.getresponse()
        text = answer.read()
        assert answer.getheader("Content-Type") == "application/vnd.schemaregistry.v1+json"
        assert answer.getheader("Allow") == ("GET, HEAD" if answer.status == 405 else None)
        return answer.status, json.loads(text) if text else None


def test_server_follows_the_topic(server: ReadOnlyRegistry, topic: Topic) -> None:
    assert ask(server, "/subjects") == (200, ["t-key", "t-value"])
    assert ask(server, "/schemas/ids/3")[0] == 404
    topic.records.append((3, "t-value", A))
    assert ask(server, "/schemas/ids/3") == (200, {"schema": A})
    assert ask(server, "/subjects/t-value/versions/2")[1]["id"] == 3


def test_known_ids_are_answered_while_kafka_is_away(server: ReadOnlyRegistry, topic: Topic) -> None:
    assert ask(server, "/schemas/ids/1") == (200, {"schema": A})
    topic.failing = True
    assert ask(server, "/schemas/ids/1") == (200, {"schema": A})
    away = {"error_code": 50003, "message": "Kafka at h:9092 does not answer"}
    assert ask(server, "/schemas/ids/9") == (503, away)


def test_kafka_client_of_confluent_reads_it(server: ReadOnlyRegistry) -> None:
    with SchemaRegistryClient({"url": f"http://127.0.0.1:{server.port}", "max.retries": 0}) as client:
        assert client.get_subjects() == ["t-key", "t-value"]
        assert client.get_schema(2).schema_str == B
        assert client.get_latest_version("t-value").schema_id == 2
        assert client.lookup_schema("t-key", Schema(A, "AVRO")).schema_id == 1
        assert client.get_versions("t-key") == [1]
        with pytest.raises(SchemaRegistryError) as unknown:
            client.get_schema(9)
        assert (unknown.value.http_status_code, unknown.value.error_code) == (404, 40403)
        with pytest.raises(SchemaRegistryError, match="read-only") as refused:
            client.register_schema("t-value", Schema(A, "AVRO"))
        assert refused.value.http_status_code == 405


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_writes_are_refused(server: ReadOnlyRegistry, method: str) -> None:
    assert ask(server, "/subjects/t-value/versions", method, b"x" * 1000) == (405, READ_ONLY)


def test_head_has_no_body(server: ReadOnlyRegistry) -> None:
    assert ask(server, "/subjects", "HEAD") == (200, None)
    assert ask(server, "/elsewhere", "HEAD") == (404, None)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:8081", 200),
        ("10.1.2.3:8081", 200),
        ("[::1]:8081", 200),
        ("localhost:8081", 200),
        ("LocalHost.", 200),
        ("registry.example:8081", 200),
        ("rebound.example:8081", 421),
        ("localhost.rebound.example", 421),
        ("registry.example@rebound.example", 421),
        ("", 421),
        (":8081", 421),
        ("[::1", 421),
        ("a" * 5000, 421),
    ],
)
def test_only_its_own_hosts_are_served(server: ReadOnlyRegistry, host: str, status: int) -> None:
    assert ask(server, "/subjects", Host=host)[0] == status


def raw(server: ReadOnlyRegistry, sent: bytes) -> bytes:
    with closing(socket.create_connection(("127.0.0.1", server.port), timeout=60)) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65536), b""))


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /subjects HTTP/1.0\r\n\r\n", b"200"),
        (b"GET /subjects HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /subjects HTTP/1.1\r\nHost: localhost\r\nHost: rebound.example\r\n\r\n", b"400"),
        (b"GET /%ff HTTP/1.1\r\nHost: localhost\r\n\r\n", b"400"),
        (b"GET http://[/subjects HTTP/1.1\r\nHost: localhost\r\n\r\n", b"400"),
        (b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b"400"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b"414"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 200 + b"\r\n", b"431"),
        (b"POST /subjects/t HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"411"),
        (b"POST /subjects/t HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", b"411"),
        (b"POST /subjects/t HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1048577\r\n\r\n", b"413"),
        (b"POST /subjects/t HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", b"413"),
        (b"POST /subjects/t HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}", b"422"),
        (b"POST /subjects/t HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n" + SECOND, b"411"),
        (b"POST /subjects/t HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1048577\r\n\r\n" + SECOND, b"413"),
        (b"GET /subjects HTTP/1.1\r\nHost: elsewhere\r\nContent-Length: 99\r\n\r\n" + SECOND, b"421"),
    ],
)
def test_hostile_requests_are_answered_and_end(server: ReadOnlyRegistry, sent: bytes, status: bytes) -> None:
    answered = raw(server, sent)
    assert answered.split(b" ", 2)[1] == status, answered[:200]
    assert answered.count(b"HTTP/1.1 ") == 1
    assert ask(server, "/subjects")[0] == 200


def test_body_that_does_not_arrive_is_not_answered(server: ReadOnlyRegistry) -> None:
    assert raw(server, b"POST /subjects/t HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{}") == b""


def test_connections_are_limited(topic: Topic) -> None:
    subjects = FollowedSubjects(topic.read)
    with ReadOnlyRegistry("127.0.0.1", 0, subjects, limits=Limits(connections=1)) as server:
        answering = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        answering.start()
        with closing(socket.create_connection(("127.0.0.1", server.port), timeout=60)) as first:
            first.sendall(b"GET /subjects HTTP/1.1\r\n")
            until(lambda: server._asking, "the request has begun")
            with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
                ask(server, "/subjects")
        server.shutdown()
        answering.join()
    subjects.close()


def test_port_in_use_is_an_error(server: ReadOnlyRegistry) -> None:
    with pytest.raises(SettingsError, match=f"cannot listen on 127.0.0.1 port {server.port}: .* with --listen"):
        ReadOnlyRegistry("127.0.0.1", server.port, server.subjects)
