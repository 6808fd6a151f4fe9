"""What a program may do in Kafka, as ACLs: one list that an administrator grants and that `headrace check` looks for.

Who needs what is said by producers/source/rights.py and consumers/operations/rights.py.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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

_SECONDS: Final = 30.0
ANY_HOST: Final = "*"


class Operation(Enum):
    """What may be done to a resource, by the names of Kafka's own tools."""

    READ = "Read"
    WRITE = "Write"
    CREATE = "Create"
    DELETE = "Delete"
    DESCRIBE = "Describe"
    DESCRIBE_CONFIGS = "DescribeConfigs"


class Kind(Enum):
    """What an ACL is about, by the options of kafka-acls.sh."""

    TOPIC = "topic"
    GROUP = "group"
    TRANSACTIONAL_ID = "transactional-id"


@dataclass(frozen=True)
class Acl:
    """Allows a principal some operations on one resource, or on all whose names begin with `name`."""

    principal: str
    kind: Kind
    name: str
    operations: tuple[Operation, ...]
    prefixed: bool = False

    @property
    def pattern(self) -> str:
        """The pattern's type, as Kafka's tools call it."""
        return "prefixed" if self.prefixed else "literal"

    def covers(self, name: str) -> bool:
        """Whether the resource called `name` is one that this is about."""
        return name.startswith(self.name) if self.prefixed else name == self.name


def commands(settings: KafkaSettings, acls: Iterable[Acl]) -> Iterator[str]:
    """Yield a command line of kafka-acls.sh for each ACL; admin.properties has an administrator's own credentials."""
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
            # Terraform's own names have letters, digits, - and _ only, and must differ.
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
    """Run it with an administrator's credentials under [kafka.options], such as from the environment."""


def apply(settings: KafkaSettings, acls: Iterable[Acl]) -> int:
    """Make the ACLs with the client of these settings; return how many there are of one operation each.

    Those that are there already stay. Raises AclsRefused when this client may not make them, or Kafka has none.
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
        client = clients.admin(settings)  # with a name: its futures end with it
        for future in client.create_acls(bindings, request_timeout=_SECONDS).values():
            try:
                clients.answer(future, _SECONDS)
            except KafkaException as error:
                if error.args[0].code() in (
                    KafkaError.SECURITY_DISABLED,
                    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
                ):
                    raise AclsRefused(
                        f"Kafka at {settings.bootstrap_servers} makes no ACLs for this client: {error.args[0].str()}"
                    ) from error
                raise
    return len(bindings)
