"""The contract of a migration, with no excess rights for its consumers and its producer.

They log in with certificates and SCRAM over TLS, each with the rights that `headrace init` prints for it. The tests are
those of tests/consumers/migrations/test_contract.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from consumers.operations.catalog import migrations
from infra.stack.postgresql.server import EmbeddedPostgres
from tests.consumers.cases import case_of
from tests.consumers.migrations import test_contract
from tests.consumers.migrations.test_contract import World
from tests.security.authority import Authority
from tests.security.secured_kafka import SecuredKafka
from tests.security.worlds import MIGRATION, SecuredWorld, secured_world

pytestmark = pytest.mark.stack

globals().update({name: test for name, test in vars(test_contract).items() if name.startswith("test_")})


class LeastPrivileged(World):
    """The contract's world: the producer's principal sends events, the consumers' does everything else."""

    def __init__(self, secured: SecuredWorld) -> None:
        self.kind = migrations()[MIGRATION]
        self.connection = secured.superuser
        self.settings = secured.consumer
        self.case = case_of(MIGRATION)(secured.producer, secured.superuser)
        secured.grant()


@pytest.fixture
def world(
    secured_kafka: SecuredKafka, secured_postgres: EmbeddedPostgres, authority: Authority, prefix: str
) -> Iterator[World]:
    with secured_world(secured_kafka, secured_postgres, authority, prefix) as secured:
        yield LeastPrivileged(secured)
