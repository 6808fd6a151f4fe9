"""A database and a topic prefix on the secured servers, with separate roles and principals for producer and consumers.

Each gets exactly what `headrace init` prints for it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import sql
from pydantic import SecretStr

from consumers.testing.waiting import until
from headrace import programs
from infra.init.administrator import administrator_script
from infra.rights import acls, kafka_rights
from infra.rights.programs import Program, chosen
from infra.rights.programs import acls as acls_of
from infra.settings.model import DatabaseSettings, KafkaSettings, MigrationSettings, Settings
from infra.stack.postgresql.server import EmbeddedPostgres
from tests.consumers.container_repositories import TABLE
from tests.security.authority import Authority
from tests.security.secured_kafka import SecuredKafka
from tests.security.secured_postgres import secured_dsn

SOURCE: Final = "here"
MIGRATION: Final = "skip_resets"
TABLE_NAME: Final = "public.container_repositories"
PRODUCER, CONSUMER = "headrace-producer", "headrace-consumer-gitlab_main"


@dataclass(frozen=True)
class SecuredWorld:
    """A source `here` and `skip_resets`; `superuser` is the test's own connection."""

    superuser: psycopg.Connection[Any]
    administrator: Settings
    producer: Settings
    consumer: Settings
    producer_role: str
    consumer_role: str

    def program(self, name: str) -> Program:
        """Return what the producer or the consumers need."""
        return chosen(programs(self.administrator), [name])[0]

    def grant(self) -> None:
        """Run what `headrace init` prints for both, once the table exists."""
        for settings, name in ((self.producer, SOURCE), (self.consumer, MIGRATION)):
            self.superuser.execute(administrator_script(settings, [self.program(name)]).encode())
        # A trigger on the tests' table logs each write; the application would grant this right.
        self.superuser.execute(
            sql.SQL("GRANT INSERT ON public.writes TO {}").format(sql.Identifier(self.consumer_role))
        )


@contextmanager
def secured_world(
    broker: SecuredKafka, server: EmbeddedPostgres, authority: Authority, prefix: str
) -> Iterator[SecuredWorld]:
    name = f"test_{secrets.token_hex(4)}"
    roles = {who: f"{who}_{prefix}" for who in ("producer", "consumer")}
    dsn = server.create_database(name)

    def section(role: str | None) -> DatabaseSettings:
        certificate = authority.client(role) if role else None
        return DatabaseSettings(
            dsn=SecretStr(secured_dsn(dsn, role, certificate, authority.certificate) if role else dsn),
            gitlab_schemas=("gitlab_main",),
            tables=(TABLE_NAME,),
            slot=name,
        )

    def settings(kafka: KafkaSettings, role: str | None) -> Settings:
        return Settings(
            prefix=prefix,
            kafka=kafka,
            databases={SOURCE: section(role)},
            migrations={MIGRATION: MigrationSettings()},
        )

    broker.add_users([PRODUCER, CONSUMER])
    plain = KafkaSettings(bootstrap_servers=broker.bootstrap_servers, replication_factor=1)
    with psycopg.connect(dsn, autocommit=True) as superuser:
        try:
            world = SecuredWorld(
                superuser,
                settings(plain, None),
                settings(broker.scram(PRODUCER), roles["producer"]),
                settings(broker.scram(CONSUMER), roles["consumer"]),
                roles["producer"],
                roles["consumer"],
            )
            acls.apply(plain, acls_of(programs(world.administrator)))
            for user, wanted in ((world.producer, SOURCE), (world.consumer, MIGRATION)):
                granted = world.program(wanted).acls
                until(lambda: not kafka_rights.lacking(user.kafka, granted, ()), "the broker to have the ACLs")  # noqa: B023
            yield world
        finally:
            broker.remove_acls()
            for role in roles.values():
                if superuser.execute("SELECT FROM pg_roles WHERE rolname = %s", (role,)).fetchone() is not None:
                    superuser.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(role)))
    server.drop_database(name)


def with_table(world: SecuredWorld) -> SecuredWorld:
    """Return the world with its table, and everything granted."""
    world.superuser.execute(TABLE)
    world.grant()
    return world
