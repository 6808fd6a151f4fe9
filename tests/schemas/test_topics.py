"""Topic names: valid in Kafka, and unique to a table."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import UsageError
from schemas.gitlab_schemas import PER_DATABASE
from schemas.topics import dead_letters_topic, positions_topic, schema_prefix, schemas_topic, source_prefix, table_topic

PARTS = st.text("ab._-é", min_size=1, max_size=4)
TABLES = st.tuples(
    st.sampled_from(["gitlab_main", *sorted(PER_DATABASE)]), PARTS, st.one_of(st.just("public"), PARTS), PARTS
)


def test_a_table_is_found_under_its_gitlab_schema() -> None:
    topic = table_topic("headrace", "gitlab_main", "main", "public", "container_repositories")
    assert topic == "headrace.gitlab_main.container_repositories"
    assert topic.startswith(schema_prefix("headrace", "gitlab_main"))
    shared = table_topic("headrace", "gitlab_shared", "ci", "headrace", "schema_ownership")
    assert shared == "headrace.gitlab_shared.ci.headrace-schema_ownership"
    internal = table_topic("headrace", "gitlab_internal", "ci", "public", "schema_migrations")
    assert internal == "headrace.gitlab_internal.ci.schema_migrations"


@pytest.mark.parametrize("gitlab_schema", ["gitlab_main", *sorted(PER_DATABASE)])
def test_a_source_may_write_the_topics_of_its_own_tables_only(gitlab_schema: str) -> None:
    topic = table_topic("p", gitlab_schema, "main", "public", "t")
    assert topic.startswith(source_prefix("p", gitlab_schema, "main"))
    assert topic.startswith(source_prefix("p", gitlab_schema, "ci")) == (gitlab_schema == "gitlab_main")


def test_headraces_own_topics() -> None:
    assert positions_topic("p") == "p.positions"
    assert schemas_topic("p") == "p.schemas"
    assert dead_letters_topic("p", "skip_resets") == "p.dead_letters.skip_resets"
    with pytest.raises(UsageError, match="dead_letters"):
        schema_prefix("p", "dead_letters")


@given(TABLES, TABLES)
@settings(deadline=None)
def test_two_tables_never_share_a_topic(one: tuple[str, str, str, str], other: tuple[str, str, str, str]) -> None:
    names = [table_topic("p", *one), table_topic("p", *other)]
    tables = [table if table[0] in PER_DATABASE else (table[0], "", *table[2:]) for table in (one, other)]
    assert (names[0] == names[1]) == (tables[0] == tables[1])
    assert all(re.fullmatch(r"[a-zA-Z0-9._-]{1,249}", name) for name in names)


@pytest.mark.parametrize("prefix", ["", "a b", "..", "é"])
def test_a_prefix_that_kafka_refuses(prefix: str) -> None:
    with pytest.raises(UsageError):
        positions_topic(prefix)


def test_a_name_that_is_too_long() -> None:
    with pytest.raises(UsageError, match="249"):
        table_topic("headrace", "gitlab_main", "main", "public", "é" * 31)
