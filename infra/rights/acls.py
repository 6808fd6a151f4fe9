"""Kafka ACLs of a program: one list that an administrator grants and `headrace check` verifies.

producers/source/rights.py and consumers/operations/rights.py define the required ACLs.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # exported, but not all by name
    AclBinding,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)

from infra.kafka import clients
from infra.settings.model import KafkaSettings
from schemas.errors import PreflightFailed
from schemas.lazy_dataclass import dataclass

_SECONDS: Final = 30.0
ANY_HOST: Final = "*"


class Operation(Enum):
    """An operation on a resource, by its name in Kafka's tools."""

    READ = "Read"
    WRITE = "Write"
    CREATE = "Create"
    DELETE = "Delete"
    DESCRIBE = "Describe"
    DESCRIBE_CONFIGS = "DescribeConfigs"


class Kind(Enum):
    """The kind of resource of an ACL, by its option of kafka-acls.sh."""

    TOPIC = "topic"
    GROUP = "group"
    TRANSACTIONAL_ID = "transactional-id"


@dataclass(frozen=True)
class Acl:
    """Allows a principal some operations on one resource, or on all whose names start with `name`."""

    principal: str
    kind: Kind
    name: str
    operations: tuple[Operation, ...]
    prefixed: bool = False

    @property
    def pattern(self) -> str:
        """The pattern type, by its name in Kafka's tools."""
        return "prefixed" if self.prefixed else "literal"

    def covers(self, name: str) -> bool:
        """Return whether it applies to the resource `name`."""
        return name.startswith(self.name) if self.prefixed else name == self.name


def commands(settings: KafkaSettings, acls: Iterable[Acl]) -> Iterator[str]:
    """Yield a command line of kafka-acls.sh for each ACL; admin.properties contains an administrator's credentials."""
    server = f"--bootstrap-server {shlex.quote(settings.bootstrap_servers)} --command-config admin.properties"
    for acl in acls:
        operations = " ".join(f"--operation {operation.value}" for operation in acl.operations)
        yield (
            f"kafka-acls.sh {server} --add --allow-principal {shlex.quote(acl.principal)} {operations}"
            f" --{acl.kind.value} {shlex.quote(acl.name)} --resource-pattern-type {acl.pattern}"
        )


_TERRAFORM_KINDS: Final = {Kind.TOPIC: "Topic", Kind.GROUP: "Group", Kind.TRANSACTIONAL_ID: "TransactionalID"}


def terraform(acls: Iterable[Acl]) -> str:
    """Return the ACLs as a Terraform file in JSON (`acls.tf.json`), for the provider Mongey/kafka."""
    resources: dict[str, dict[str, str]] = {}
    for acl in acls:
        for operation in acl.operations:
            # Terraform names may only have letters, digits, - and _, and must be unique.
            resources[f"headrace_{len(resources) + 1:03}"] = {
                "resource_name": acl.name,
                "resource_type": _TERRAFORM_KINDS[acl.kind],
                "resource_pattern_type_filter": acl.pattern.capitalize(),
                "acl_principal": acl.principal,
                "acl_host": ANY_HOST,
                "acl_operation": operation.value,
                "acl_permission_type": "Allow",
            }
    return json.dumps({"resource": {"kafka_acl": resources}}, indent=2)


_RESOURCES: Final[dict[Kind, Any]] = {
    Kind.TOPIC: ResourceType.TOPIC,
    Kind.GROUP: ResourceType.GROUP,
    Kind.TRANSACTIONAL_ID: ResourceType.TRANSACTIONAL_ID,
}


class AclsRefused(PreflightFailed):
    """Run it with an administrator's credentials in [kafka.options], such as from the environment."""


def apply(settings: KafkaSettings, acls: Iterable[Acl]) -> int:
    """Create the ACLs with the client of these settings; return their number, one per operation.

    Idempotent. Raises AclsRefused if this client may not create them, or Kafka has no authorizer.
    """
    bindings = [
        AclBinding(
            _RESOURCES[acl.kind],
            acl.name,
            ResourcePatternType.PREFIXED if acl.prefixed else ResourcePatternType.LITERAL,
            acl.principal,
            ANY_HOST,
            AclOperation[operation.name],
            AclPermissionType.ALLOW,
        )
        for acl in acls
        for operation in acl.operations
    ]
    with clients.translated(settings):
        client = clients.admin(settings)  # kept in a variable: its futures end with it
        for future in client.create_acls(bindings, request_timeout=_SECONDS).values():
            try:
                clients.answer(future, _SECONDS)
            except KafkaException as error:
                if error.args[0].code() in (
                    KafkaError.SECURITY_DISABLED,
                    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
                ):
                    raise AclsRefused(
                        f"Kafka at {settings.bootstrap_servers} creates no ACLs for this client: {error.args[0].str()}"
                    ) from error
                raise
    return len(bindings)
