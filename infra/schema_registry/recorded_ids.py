"""Compares the schema ids on record for topics with the registry's answers for them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from infra.kafka.topics import partition_counts, with_records
from infra.schema_registry.registry_identity import RegistryChanged, changed_topics
from infra.schema_registry.topic_registry import open_registry
from infra.settings.model import Settings

Recorded = Mapping[str, Collection[Mapping[int, str]]]
"""Topic → what each of its records of state has: schema id → fingerprint."""


def changed_registry(settings: Settings, recorded: Recorded) -> Iterator[RegistryChanged]:
    """Yield an error for each topic with an id that is not the registry's, if the topic has any records.

    Raises HeadraceError if Kafka or the registry does not answer.
    """
    registry = open_registry(settings)
    if not recorded or not any(changed_topics(settings, registry, recorded)):
        return
    # Only now, since Kafka takes most of a second to say it of a thousand topics. Not every principal may describe all
    # the topics that are on record.
    visible = recorded.keys() & partition_counts(settings.kafka).keys()
    filled = with_records(settings.kafka, visible)
    yield from changed_topics(settings, registry, {topic: ids for topic, ids in recorded.items() if topic in filled})


def require_none(changed: Iterable[RegistryChanged]) -> None:
    """Raise RegistryChanged if there is any error; it names the first topic, and how many more there are."""
    found = list(changed)
    if found:
        more = f", as have {len(found) - 1} more topics" if len(found) > 1 else ""
        raise RegistryChanged(f"{found[0].problem}{more}", remedy=found[0].remedy)
