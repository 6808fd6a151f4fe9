"""The gitlab schema of a table."""

from __future__ import annotations

import pytest

from schemas.gitlab_schemas import KNOWN, TABLES, UnmappedTable, gitlab_schema_of

ALL = sorted(KNOWN)


@pytest.mark.parametrize(
    ("table", "gitlab_schema"),
    [
        ("public.container_repositories", "gitlab_main"),
        ("public.projects", "gitlab_main"),
        ("public.namespaces", "gitlab_main"),
        ("public.ci_builds", "gitlab_ci"),
        ("public.batched_background_migrations", "gitlab_shared"),
        ("public.batched_background_migration_jobs", "gitlab_shared"),
        ("public.schema_migrations", "gitlab_shared"),
        ("public.ar_internal_metadata", "gitlab_shared"),
        ("headrace.schema_ownership", "gitlab_shared"),
        ("headrace.database", "gitlab_shared"),
        ("public.storage_repositories", "praefect"),
        ("public.virtual_storages", "praefect"),
        ("public.repository_assignments", "praefect"),
        ("public.gitserver_repos", "gitserver"),
        ("public.repo", "gitserver"),
    ],
)
def test_the_tables_of_the_seeds_are_known(table: str, gitlab_schema: str) -> None:
    assert gitlab_schema_of(table, ALL, {}) == gitlab_schema


def test_the_database_decides_between_two_systems() -> None:
    assert gitlab_schema_of("public.repositories", ["praefect"], {}) == "praefect"
    assert gitlab_schema_of("public.repositories", ["registry"], {}) == "registry"
    with pytest.raises(UnmappedTable, match=r"praefect or registry.*databases\.<name>\.table_schemas"):
        gitlab_schema_of("public.repositories", ALL, {})


def test_settings_override_the_dictionary() -> None:
    extra = {"public.repositories": "registry", "public.mine": "my_schema"}
    assert gitlab_schema_of("public.repositories", ALL, extra) == "registry"
    assert gitlab_schema_of("public.mine", [], extra) == "my_schema"


def test_a_table_in_no_list_is_named_with_the_place_to_add_it() -> None:
    with pytest.raises(UnmappedTable, match=r"public\.mine.*databases\.<name>\.table_schemas"):
        gitlab_schema_of("public.mine", ALL, {})
    with pytest.raises(UnmappedTable, match=r"public\.ci_builds.*gitlab_ci.*gitlab_main"):
        gitlab_schema_of("public.ci_builds", ["gitlab_main"], {})


def test_every_label_in_the_dictionary_is_known() -> None:
    assert {label for labels in TABLES.values() for label in labels} <= KNOWN
