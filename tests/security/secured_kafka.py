"""A broker that requires TLS: with SCRAM on one listener, a client certificate on another; with ACLs.

Its plaintext listener is for the tests, with an administrator as the anonymous principal.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from confluent_kafka import KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # exported, but not by name
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from consumers.testing.waiting import until
from infra.settings.model import KafkaSettings
from infra.stack.brokers.broker_settings import SETTINGS
from infra.stack.brokers.cluster import EmbeddedKafka
from infra.stack.processes.keeper import Keeper
from infra.stack.processes.ports import free_ports
from tests.security.authority import Authority, Certificate

_SECONDS: Final = 120.0
ADMIN: Final = "admin"
PROTOCOLS: Final = "listener.security.protocol.map"


def _lets_in(settings: KafkaSettings) -> bool:
    try:
        AdminClient({"bootstrap.servers": settings.bootstrap_servers, **settings.options}).list_topics(timeout=5)
    except KafkaException:
        return False
    return True


class SecuredKafka(EmbeddedKafka):
    """See this module; `start` it, then `add_users`."""

    def __init__(self, directory: Path, keeper: Keeper, authority: Authority) -> None:
        self.authority = authority
        self.scram_port, self.tls_port = free_ports(2)
        self._passwords: dict[str, str] = {}
        super().__init__(directory, keeper, settings=self._security(authority.server("broker")))

    def _security(self, certificate: Certificate) -> dict[str, str]:
        places = f"SCRAM://127.0.0.1:{self.scram_port},TLS://127.0.0.1:{self.tls_port}"
        return {
            "listeners": places,
            "advertised.listeners": places,
            PROTOCOLS: f"{SETTINGS[PROTOCOLS]},SCRAM:SASL_SSL,TLS:SSL",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": f"User:ANONYMOUS;User:{ADMIN}",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(certificate.both),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.authority.certificate),
            "ssl.principal.mapping.rules": "RULE:^CN=(.*)$/$1/",
            "listener.name.tls.ssl.client.auth": "required",
            "listener.name.scram.sasl.enabled.mechanisms": "SCRAM-SHA-256",
            "listener.name.scram.scram-sha-256.sasl.jaas.config": (
                "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            ),
        }

    def administrator(self) -> AdminClient:
        """Return an administrator's client, over the plaintext listener."""
        return AdminClient({"bootstrap.servers": self.bootstrap_servers})

    def add_users(self, names: Iterable[str]) -> None:
        """Let users log in by SCRAM, each with a random password; existing users keep theirs."""
        new = {name: secrets.token_hex(12) for name in names if name not in self._passwords}
        if not new:
            return
        mechanism = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4096)
        client = self.administrator()
        for future in client.alter_user_scram_credentials(
            [UserScramCredentialUpsertion(name, mechanism, password.encode()) for name, password in new.items()]
        ).values():
            future.result(_SECONDS)
        self._passwords |= new
        for name in new:
            until(lambda: _lets_in(self.scram(name)), f"the broker to know {name}")  # noqa: B023

    def scram(self, user: str, **options: str) -> KafkaSettings:
        """Return the settings of a client that logs in as `user`; `options` have `_` for `.`, and take precedence."""
        usual = {
            "security.protocol": "SASL_SSL",
            "sasl.mechanisms": "SCRAM-SHA-256",
            "sasl.username": user,
            "sasl.password": self._passwords[user],
            "ssl.ca.location": str(self.authority.certificate),
        }
        return self._settings(self.scram_port, usual, options)

    def mutual(self, certificate: Certificate | None, **options: str) -> KafkaSettings:
        """Return the settings of a client with a certificate, or without."""
        usual = {"security.protocol": "SSL", "ssl.ca.location": str(self.authority.certificate)}
        if certificate is not None:
            usual |= {
                "ssl.certificate.location": str(certificate.certificate),
                "ssl.key.location": str(certificate.key),
            }
        return self._settings(self.tls_port, usual, options)

    def _settings(self, port: int, usual: dict[str, str], options: dict[str, str]) -> KafkaSettings:
        chosen = usual | {name.replace("_", "."): value for name, value in options.items()}
        return KafkaSettings(bootstrap_servers=f"127.0.0.1:{port}", options=dict(chosen), replication_factor=1)

    def remove_acls(self, principal: str | None = None, name: str | None = None) -> None:
        """Remove all ACLs: of a principal, of resources with that name or prefix."""
        every = AclBindingFilter(
            ResourceType.ANY,
            name,  # type: ignore[arg-type]  # None, as below, is any
            ResourcePatternType.ANY,
            principal,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            AclOperation.ANY,
            AclPermissionType.ANY,
        )
        client = self.administrator()
        for future in client.delete_acls([every]).values():
            future.result(_SECONDS)
