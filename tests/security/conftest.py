"""Servers with TLS and client authentication for this folder's tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.stack.postgresql.server import EmbeddedPostgres
from infra.stack.processes.keeper import Keeper
from tests.security.authority import Authority
from tests.security.secured_kafka import SecuredKafka
from tests.security.secured_postgres import secured_server


@pytest.fixture(scope="session")
def authority() -> Iterator[Authority]:
    """The authority that signed the certificates of all servers here."""
    with tempfile.TemporaryDirectory(prefix="headrace-test-") as place:
        Path(place).chmod(0o755)
        yield Authority(Path(place), "authority")


@pytest.fixture(scope="session")
def secured_kafka(authority: Authority) -> Iterator[SecuredKafka]:
    with tempfile.TemporaryDirectory(prefix="headrace-test-") as place:
        directory = Path(place) / "kafka"
        directory.mkdir()
        keeper = Keeper()
        broker = SecuredKafka(directory, keeper, authority)
        try:
            broker.start()
            yield broker
        finally:
            broker.kill()
            keeper.close()


@pytest.fixture(scope="session")
def secured_postgres(authority: Authority) -> Iterator[EmbeddedPostgres]:
    with secured_server(authority) as server:
        yield server
