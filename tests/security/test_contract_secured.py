"""The contract of a migration, with no excess rights for its consumers and its producer.

They log in with certificates and SCRAM over TLS, each with the rights that `headrace init` prints for it. The promises
are those of tests/consumers/migrations/test_contract.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from consumers.operations.catalog import migrations
from consumers.testing.promises import PROMISES
from consumers.testing.world import World
from infra.settings.model import Settings
from infra.stack.postgresql.server import EmbeddedPostgres
from tests.consumers.cases import case_of
from tests.security.authority import Authority
from tests.security.secured_kafka import SecuredKafka
from tests.security.worlds import MIGRATION, SecuredWorld, secured_world

pytestmark = pytest.mark.stack


def least_privileged(secured: SecuredWorld) -> World:
    """Return the contract's world: the producer's principal sends events, the consumers' does everything else."""
    case = case_of(MIGRATION)(secured.producer, secured.superuser)
    secured.grant()
    return World(migrations(Settings())[MIGRATION], secured.consumer, secured.superuser, case)


@pytest.fixture
def world(
    secured_kafka: SecuredKafka, secured_postgres: EmbeddedPostgres, authority: Authority, prefix: str
) -> Iterator[World]:
    with secured_world(secured_kafka, secured_postgres, authority, prefix) as secured:
        yield least_privileged(secured)


@pytest.mark.long
@pytest.mark.parametrize("promise", PROMISES)
def test_migration_keeps_the_promise(world: World, promise: str) -> None:
    PROMISES[promise](world)
