"""Defines for every error code of librdkafka whether headrace waits, refuses, or exits with the error.

Pure data. The codes are those of the librdkafka that confluent-kafka 2.16 has; a test compares them with the library's
own list, and docs/reference/kafka-errors.md with this table. `infra.kafka.clients.translate` is its one reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from confluent_kafka import KafkaError as K

from schemas.lazy_dataclass import dataclass


class Course(StrEnum):
    """The reaction to an error, by the documentation's word for it."""

    WAITED = "waited for"
    """A service logs it and retries; any other command ends with exit code 1."""
    REDONE = "named, or redone"
    """Ends with exit code 1; if it aborted a transaction of the producer, that is retried, as with WAITED."""
    REFUSED = "refused"
    """Ends with exit code 3, or 2 if the settings are wrong: waiting would not help."""
    FENCED = "fenced"
    """Ends with exit code 3, since another process has taken over."""
    NAMED = "named"
    """Ends with exit code 1: neither waiting nor another right would help."""


@dataclass(frozen=True)
class Meaning:
    """An error in Kafka's terms, and what the operator can do about it, if that is not obvious."""

    course: Course
    why: str


def _all(course: Course, why: str, *codes: int) -> dict[int, Meaning]:
    return dict.fromkeys(codes, Meaning(course, why))


_SILENT: Final = {
    **_all(
        Course.WAITED,
        "no connection to a broker",
        *(K._TRANSPORT, K._ALL_BROKERS_DOWN, K._FAIL, K._RESOLVE, K.NETWORK_EXCEPTION, K.BROKER_NOT_AVAILABLE),
        *(K._UNKNOWN_BROKER, K.REBOOTSTRAP_REQUIRED),
    ),
    **_all(
        Course.WAITED,
        "no answer in time",
        *(K._TIMED_OUT, K._TIMED_OUT_QUEUE, K._MSG_TIMED_OUT, K.REQUEST_TIMED_OUT, K._INTR),
    ),
}

_WAITED: Final = {
    **_all(
        Course.WAITED,
        "a broker left the cluster during the request",
        *(K._DESTROY, K._DESTROY_BROKER, K._NODE_UPDATE, K.STALE_BROKER_EPOCH),
    ),
    **_all(
        Course.WAITED,
        "the partition has no leader at the moment, or another one",
        *(K.LEADER_NOT_AVAILABLE, K.NOT_LEADER_FOR_PARTITION, K.REPLICA_NOT_AVAILABLE, K.FENCED_LEADER_EPOCH),
        *(K.UNKNOWN_LEADER_EPOCH, K.OFFSET_NOT_AVAILABLE, K.PREFERRED_LEADER_NOT_AVAILABLE),
        *(K.ELIGIBLE_LEADERS_NOT_AVAILABLE, K.REASSIGNMENT_IN_PROGRESS),
        K._NOENT,  # no leader was found for any requested partition
    ),
    **_all(
        Course.WAITED,
        "the coordinator of a group or a transaction is moving",
        *(K._WAIT_COORD, K.COORDINATOR_LOAD_IN_PROGRESS, K.COORDINATOR_NOT_AVAILABLE, K.NOT_COORDINATOR),
        *(K.TRANSACTION_COORDINATOR_FENCED, K.CONCURRENT_TRANSACTIONS),
    ),
    **_all(
        Course.WAITED,
        "the controller is moving",
        *(K.NOT_CONTROLLER, K.STALE_CTRL_EPOCH, K.OPERATION_NOT_ATTEMPTED),
    ),
    **_all(
        Course.WAITED,
        "fewer in-sync replicas than the topic's min.insync.replicas: restore the brokers",
        *(K.NOT_ENOUGH_REPLICAS, K.NOT_ENOUGH_REPLICAS_AFTER_APPEND, K._ISR_INSUFF),
    ),
    **_all(
        Course.WAITED,
        "fewer brokers than kafka.replication_factor: restore them, or lower it",
        *(K.INVALID_REPLICATION_FACTOR, K.INVALID_REPLICA_ASSIGNMENT),
    ),
    **_all(Course.WAITED, "a broker's disk failed", K.KAFKA_STORAGE_ERROR),
    **_all(Course.WAITED, "the broker's quota is exceeded", K.THROTTLING_QUOTA_EXCEEDED),
    **_all(
        Course.WAITED,
        "the group is rebalancing",
        *(K.REBALANCE_IN_PROGRESS, K.ILLEGAL_GENERATION, K.UNKNOWN_MEMBER_ID, K.MEMBER_ID_REQUIRED),
        *(K._ASSIGNMENT_LOST, K._ASSIGN_PARTITIONS, K._REVOKE_PARTITIONS, K.UNSTABLE_OFFSET_COMMIT),
    ),
    **_all(
        Course.WAITED,
        "librdkafka is still working on it",
        *(K._IN_PROGRESS, K._PREV_IN_PROGRESS, K._WAIT_CACHE, K._RETRY, K._OUTDATED, K._QUEUE_FULL, K._PARTIAL),
        *(K.FETCH_SESSION_ID_NOT_FOUND, K.INVALID_FETCH_SESSION_EPOCH),
    ),
    **_all(
        Course.WAITED,
        "the transaction has to be repeated",
        *(K.TRANSACTION_ABORTABLE, K._PURGE_QUEUE, K._PURGE_INFLIGHT, K._INVALID_DIFFERENT_RECORD),
        *(K.OUT_OF_ORDER_SEQUENCE_NUMBER, K.UNKNOWN_PRODUCER_ID, K.INVALID_PRODUCER_ID_MAPPING),
    ),
}

_REDONE: Final = {
    **_all(
        Course.REDONE,
        "no such topic or partition: it was deleted, or Describe on it is not granted",
        *(K.UNKNOWN_TOPIC_OR_PART, K._UNKNOWN_TOPIC, K._UNKNOWN_PARTITION, K.UNKNOWN_TOPIC_ID),
        K.INCONSISTENT_TOPIC_ID,
    ),
    **_all(
        Course.REDONE,
        "a broker and librdkafka disagree on the transaction",
        *(K.INVALID_TXN_STATE, K._STATE, K._INCONSISTENT, K.DUPLICATE_SEQUENCE_NUMBER, K._FATAL, K.UNKNOWN),
        *(K._GAPLESS_GUARANTEE, K.INVALID_TIMESTAMP, K.INVALID_MSG, K._BAD_MSG, K._BAD_COMPRESSION, K._UNDERFLOW),
    ),
}

_REFUSED: Final = {
    **_all(
        Course.REFUSED,
        "a right is missing: `headrace init --sql` prints the ACL commands",
        *(K.TOPIC_AUTHORIZATION_FAILED, K.GROUP_AUTHORIZATION_FAILED, K.CLUSTER_AUTHORIZATION_FAILED),
        *(K.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, K.DELEGATION_TOKEN_AUTHORIZATION_FAILED),
    ),
    **_all(
        Course.REFUSED,
        "the broker rejects these credentials",
        *(K._AUTHENTICATION, K.SASL_AUTHENTICATION_FAILED, K.UNSUPPORTED_SASL_MECHANISM, K.ILLEGAL_SASL_STATE),
        *(K.SECURITY_DISABLED, K.DELEGATION_TOKEN_AUTH_DISABLED, K.DELEGATION_TOKEN_NOT_FOUND),
        *(K.DELEGATION_TOKEN_OWNER_MISMATCH, K.DELEGATION_TOKEN_REQUEST_NOT_ALLOWED, K.DELEGATION_TOKEN_EXPIRED),
        *(K.INVALID_PRINCIPAL_TYPE, K.UNACCEPTABLE_CREDENTIAL, K.PRINCIPAL_DESERIALIZATION_FAILURE),
    ),
    **_all(Course.REFUSED, "TLS: a certificate, its CA or a cipher does not match", K._SSL),
    **_all(Course.REFUSED, "an option under kafka.options is wrong", K._INVALID_ARG, K._CONFLICT, K._NOT_CONFIGURED),
    **_all(
        Course.REFUSED,
        "the broker's configuration forbids it",
        *(K.POLICY_VIOLATION, K.INVALID_CONFIG, K.INVALID_PARTITIONS, K.TOPIC_DELETION_DISABLED),
        *(K.INVALID_TRANSACTION_TIMEOUT, K.INVALID_SESSION_TIMEOUT, K.GROUP_MAX_SIZE_REACHED),
        *(K.INVALID_REQUIRED_ACKS, K.LISTENER_NOT_FOUND, K.LOG_DIR_NOT_FOUND, K.UNSUPPORTED_COMPRESSION_TYPE),
    ),
    **_all(
        Course.REFUSED,
        "the brokers are too old, or use another protocol",
        *(K._UNSUPPORTED_FEATURE, K.UNSUPPORTED_VERSION, K.UNSUPPORTED_FOR_MESSAGE_FORMAT, K._UNKNOWN_PROTOCOL),
        *(K._NOT_IMPLEMENTED, K.INCONSISTENT_GROUP_PROTOCOL, K.UNSUPPORTED_ASSIGNOR),
        *(K.MISMATCHED_ENDPOINT_TYPE, K.UNSUPPORTED_ENDPOINT_TYPE),
    ),
}

_FENCED: Final = _all(
    Course.FENCED,
    "another producer of the source, or another consumer, has taken over",
    *(K._FENCED, K.PRODUCER_FENCED, K.INVALID_PRODUCER_EPOCH, K.FENCED_INSTANCE_ID, K.FENCED_MEMBER_EPOCH),
    *(K.STALE_MEMBER_EPOCH, K.UNRELEASED_INSTANCE_ID),
)

_NAMED: Final = {
    **_all(
        Course.NAMED,
        "the record is too large for the topic or the broker",
        *(K.MSG_SIZE_TOO_LARGE, K.INVALID_MSG_SIZE, K.RECORD_LIST_TOO_LARGE),
    ),
    **_all(Course.NAMED, "the broker rejects the record", K.INVALID_RECORD, K.TOPIC_EXCEPTION, K.INVALID_REQUEST),
    **_all(
        Course.NAMED,
        "events that are needed are gone: see docs/how-to/recovery.md",
        *(K.OFFSET_OUT_OF_RANGE, K._AUTO_OFFSET_RESET, K._LOG_TRUNCATION, K._NO_OFFSET),
    ),
    **_all(
        Course.NAMED,
        "it exists already, or does not exist",
        *(K.TOPIC_ALREADY_EXISTS, K.NON_EMPTY_GROUP, K.GROUP_ID_NOT_FOUND, K.GROUP_SUBSCRIBED_TO_TOPIC),
        *(K.RESOURCE_NOT_FOUND, K.DUPLICATE_RESOURCE, K._UNKNOWN_GROUP, K.INVALID_GROUP_ID),
        *(K.ELECTION_NOT_NEEDED, K.NO_REASSIGNMENT_IN_PROGRESS),
    ),
    **_all(
        Course.NAMED,
        "this machine lacks memory or descriptors, or a file failed",
        *(K._CRIT_SYS_RESOURCE, K._FS, K._READ_ONLY),
    ),
    **_all(
        Course.NAMED,
        "a part of Kafka that headrace does not use",
        *(K._KEY_SERIALIZATION, K._VALUE_SERIALIZATION, K._KEY_DESERIALIZATION, K._VALUE_DESERIALIZATION),
        *(K._INVALID_TYPE, K._EXISTING_SUBSCRIPTION, K._APPLICATION, K.OFFSET_METADATA_TOO_LARGE),
        *(K.INVALID_COMMIT_OFFSET_SIZE, K.INCONSISTENT_VOTER_SET, K.INVALID_UPDATE_VERSION, K.FEATURE_UPDATE_FAILED),
        *(K.UNKNOWN_CONTROLLER_ID, K.UNKNOWN_SUBSCRIPTION_ID, K.TELEMETRY_TOO_LARGE, K.INVALID_REGISTRATION),
        *(K.INVALID_RECORD_STATE, K.SHARE_SESSION_NOT_FOUND, K.INVALID_SHARE_SESSION_EPOCH, K.FENCED_STATE_EPOCH),
        *(K.SHARE_SESSION_LIMIT_REACHED, K.INVALID_VOTER_KEY, K.DUPLICATE_VOTER, K.VOTER_NOT_FOUND),
        *(K.INVALID_REGULAR_EXPRESSION, K.STREAMS_INVALID_TOPOLOGY, K.STREAMS_INVALID_TOPOLOGY_EPOCH),
        K.STREAMS_TOPOLOGY_FENCED,
    ),
    **_all(
        Course.NAMED,
        "not an error: librdkafka uses these codes internally",
        *(K.NO_ERROR, K._PARTITION_EOF, K._NOOP, K._MAX_POLL_EXCEEDED),
    ),
}

MEANINGS: Final[Mapping[int, Meaning]] = {**_SILENT, **_WAITED, **_REDONE, **_REFUSED, **_FENCED, **_NAMED}
"""By code."""

SILENT: Final = frozenset(_SILENT)
"""The codes that only mean that no broker answers."""

UNKNOWN: Final = Meaning(Course.REDONE, "a code of a later librdkafka, unknown to this headrace")
