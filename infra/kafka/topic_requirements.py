"""Checks the configuration of topics that an operator created in advance or changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from infra.kafka.topic_configurations import TopicConfigurations
from schemas.errors import PreflightFailed

_STATE_BYTES: Final = 1_000_000
"""The size that a record of headrace's own state may need, such as the keys of a chunk or a schema of 1,600 columns."""

DELETES_SECONDS: Final = 86_400
"""How long a delete must stay readable at least: Kafka's default."""


class TopicUnfit(PreflightFailed):
    """Alter the topic with Kafka's kafka-configs.sh, then start again."""


def require(configured: TopicConfigurations, tables: Iterable[str], state: Iterable[str]) -> None:
    """Raise TopicUnfit for the first topic that would lose required records; see `unfit`."""
    for problem in unfit(configured, tables, state):
        raise problem


def unfit(configured: TopicConfigurations, tables: Iterable[str], state: Iterable[str]) -> Iterator[TopicUnfit]:
    """Yield the problems of topics of tables, and of those of headrace's own state.

    Topics that do not exist, or whose configuration may not be read, are skipped.
    """
    own = frozenset(state)
    found = configured.of([*tables, *own])
    for name in sorted(found):
        configuration = found[name]
        if "delete" in {each.strip() for each in configuration.get("cleanup.policy", "").split(",")}:
            gone = "" if name in own else "; if records may be gone already, `headrace snapshot TABLE --from-scratch`"
            yield TopicUnfit(
                f"topic {name} deletes records by age or size (cleanup.policy={configuration['cleanup.policy']}),"
                " and must keep the last one of each key",
                remedy=f"{_alter(name, 'cleanup.policy=compact')}{gone}",
            )
        elif name in own and int(configuration.get("max.message.bytes", _STATE_BYTES)) < _STATE_BYTES:
            yield TopicUnfit(
                f"topic {name} accepts records of {configuration['max.message.bytes']} bytes, and headrace's own need"
                f" {_STATE_BYTES} (max.message.bytes)",
                remedy=_alter(name, f"max.message.bytes={_STATE_BYTES}"),
            )


def forgetful(configured: TopicConfigurations, tables: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield problem and remedy for each table's topic that drops deletes before a slow reader may have read them."""
    for name, configuration in sorted(configured.of(list(tables)).items()):
        kept = int(configuration.get("delete.retention.ms", DELETES_SECONDS * 1000)) // 1000
        if kept < DELETES_SECONDS:
            yield (
                f"topic {name} drops a delete {kept} s after compaction (delete.retention.ms): a reader that pauses"
                " longer misses deletes and has to start over",
                _alter(name, f"delete.retention.ms={DELETES_SECONDS * 1000}"),
            )


def _alter(name: str, setting: str) -> str:
    return f"run kafka-configs.sh --alter --entity-type topics --entity-name {name} --add-config {setting}"
