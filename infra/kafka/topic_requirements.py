"""What a topic has to be configured as: those that somebody made beforehand, or changed, are looked at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from infra.kafka.topics import configurations
from infra.settings.model import KafkaSettings
from schemas.errors import PreflightFailed

_STATE_BYTES: Final = 1_000_000
"""What a record of headrace's own state may take, such as the keys of a chunk or a schema of 1,600 columns."""

DELETES_SECONDS: Final = 86_400
"""How long a delete is to be read after it was written, at least: Kafka's own default."""


class TopicUnfit(PreflightFailed):
    """Alter the topic with Kafka's kafka-configs.sh, then start again."""


def require(settings: KafkaSettings, tables: Iterable[str], state: Iterable[str]) -> None:
    """Raise TopicUnfit for the first topic that would lose what it has to keep; see `unfit`."""
    for problem in unfit(settings, tables, state):
        raise problem


def unfit(settings: KafkaSettings, tables: Iterable[str], state: Iterable[str]) -> Iterator[TopicUnfit]:
    """Yield what is wrong with topics of tables, and with those of headrace's own state; one that is not there is fine.

    Of one whose configuration may not be read nothing is said.
    """
    own = frozenset(state)
    found = configurations(settings, [*tables, *own])
    for name in sorted(found):
        configuration = found[name]
        if "delete" in {each.strip() for each in configuration.get("cleanup.policy", "").split(",")}:
            gone = "" if name in own else "; if records may be gone already, `headrace snapshot TABLE --anew`"
            yield TopicUnfit(
                f"topic {name} loses records by their age or number (cleanup.policy={configuration['cleanup.policy']}),"
                " and has to keep the last one of each key",
                remedy=f"{_alter(name, 'cleanup.policy=compact')}{gone}",
            )
        elif name in own and int(configuration.get("max.message.bytes", _STATE_BYTES)) < _STATE_BYTES:
            yield TopicUnfit(
                f"topic {name} takes records of {configuration['max.message.bytes']} bytes, and headrace's own need"
                f" {_STATE_BYTES} (max.message.bytes)",
                remedy=_alter(name, f"max.message.bytes={_STATE_BYTES}"),
            )


def forgetful(settings: KafkaSettings, tables: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield problem and remedy for each table's topic that forgets deletes sooner than a reader may come back."""
    for name, configuration in sorted(configurations(settings, list(tables)).items()):
        kept = int(configuration.get("delete.retention.ms", DELETES_SECONDS * 1000)) // 1000
        if kept < DELETES_SECONDS:
            yield (
                f"topic {name} forgets a delete {kept} s after it was compacted (delete.retention.ms): whoever reads it"
                " with a longer pause misses deletes, and has to begin again",
                _alter(name, f"delete.retention.ms={DELETES_SECONDS * 1000}"),
            )


def _alter(name: str, setting: str) -> str:
    return f"run kafka-configs.sh --alter --entity-type topics --entity-name {name} --add-config {setting}"
