"""Which gitlab schema a table of a database belongs to, and what is printed about those that have none."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from infra.settings.file import load_settings
from infra.settings.model import DatabaseSettings
from infra.settings.table_labels import TableLabels
from schemas.errors import SettingsError
from schemas.gitlab_schemas import KNOWN, UnmappedTable
from tests.infra.settings.test_gitlab_dictionary import DOCS, FILE

ALL = sorted(KNOWN)


def labels(own: list[str], table_schemas: dict[str, str] | None = None, **more: Any) -> TableLabels:
    values = {"dsn": "host=h", "gitlab_schemas": own, "table_schemas": table_schemas or {}, **more}
    return TableLabels("main", DatabaseSettings.model_validate(values))


def refusal(of: TableLabels, *tables: str) -> UnmappedTable:
    with pytest.raises(UnmappedTable) as caught:
        of.of_all(tables)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    return caught.value


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
def test_tables_of_the_migrations_are_known(table: str, gitlab_schema: str) -> None:
    assert labels(ALL).of(table) == labels(ALL).known(table) == gitlab_schema


def test_database_decides_between_two_systems() -> None:
    assert labels(["praefect"]).of("public.repositories") == "praefect"
    assert labels(["registry"]).of("public.repositories") == "registry"
    error = refusal(labels(ALL), "public.repositories")
    assert error.problem == "table public.repositories may belong to praefect or registry"
    assert error.remedy == 'add "public.repositories" = "<gitlab schema>" under [databases.main.table_schemas]'
    assert error.shown == ()
    error = refusal(labels(ALL), "public.repositories", "public.mine")
    assert error.shown[1] == '"public.repositories" = ""  # praefect or registry'
    assert labels(ALL).known("public.repositories") is None
    assert labels(["gitlab_main"]).known("public.repositories") is None
    assert labels(["gitlab_main"]).known("public.repositories", also=["registry"]) == "registry"


def test_settings_win_over_gitlabs_dictionary_and_that_over_the_built_in_list() -> None:
    tables = ("public.schema_migrations", "public.projects", "public.namespaces", "public.keys", "public.ci_builds")
    written = {"public.projects": "gitlab_sec", "public.ci_*": "gitlab_main"}
    assert labels(ALL).of_all(tables) == {
        "public.schema_migrations": "gitlab_shared",
        "public.projects": "gitlab_main",
        "public.namespaces": "gitlab_main",
        "public.keys": "gitlab_main",
        "public.ci_builds": "gitlab_ci",
    }
    found = labels(ALL, gitlab_dictionary=DOCS).of_all(tables)
    assert (found["public.schema_migrations"], found["public.namespaces"]) == ("gitlab_internal", "gitlab_main_cell")
    assert found["public.keys"] == "gitlab_main", "which the dictionary lacks"
    found = labels(ALL, written, gitlab_dictionary=DOCS).of_all(tables)
    assert (found["public.projects"], found["public.ci_builds"]) == ("gitlab_sec", "gitlab_main")
    assert found["public.namespaces"] == "gitlab_main_cell"
    assert labels(ALL, {"public.*": "gitlab_ci"}, gitlab_dictionary=DOCS).of("public.projects") == "gitlab_ci"
    assert labels(ALL, gitlab_dictionary=FILE).of("public.ar_internal_metadata") == "gitlab_internal"


def test_pattern_that_contradicts_the_dictionary_is_found() -> None:
    tables = ("public.ci_builds", "public.projects", "public.ci_triggers", "public.schema_migrations", "public.mine")
    every = {"public.*": "gitlab_main", "public.ci_triggers": "gitlab_main"}
    own = labels(["gitlab_main", "gitlab_ci"], every)
    assert own.contradicted(tables) == {"public.ci_builds": "gitlab_ci"}, "the database has no gitlab_shared"
    assert labels(["gitlab_main"], every).contradicted(tables) == {}
    read = labels(["gitlab_main", "gitlab_main_cell", "gitlab_internal"], every, gitlab_dictionary=DOCS)
    assert read.contradicted(["public.namespaces", *tables]) == {
        "public.namespaces": "gitlab_main_cell",
        "public.schema_migrations": "gitlab_internal",
    }
    assert labels(["gitlab_main", "gitlab_ci"]).contradicted(tables) == {}, "without a pattern"


def test_tables_that_other_sections_name_count_after_the_databases_own() -> None:
    elsewhere = {"public.projects": "gitlab_sec", "public.other": "gitlab_sec", "public.*": "gitlab_sec"}
    own = labels(["gitlab_main"], {"public.projects": "gitlab_ci"})
    assert own.known("public.projects", elsewhere=elsewhere) == "gitlab_ci"
    assert own.known("public.other", elsewhere=elsewhere) == "gitlab_sec"
    assert own.known("public.neither", elsewhere=elsewhere) is None


def test_all_tables_without_a_gitlab_schema_are_shown_as_toml(tmp_path: Path) -> None:
    odd = 'public.a "quoted" \\ name\u0085\u007f\U000e0001'
    tables = [f"public.mine_{number}" for number in range(87)] + [odd, "public.projects"]
    error = refusal(labels(["gitlab_main", "gitlab_shared"]), *tables)
    assert error.problem == (
        "88 tables have no gitlab schema of this database: public.mine_0, public.mine_1, public.mine_2 and 85 more"
    )
    assert 'or one pattern such as "public.*" = "gitlab_main"' in error.remedy
    assert all(line.isprintable() for line in error.shown)
    file = tmp_path / "headrace.toml"
    file.write_text(
        '[databases.main]\ndsn = "host=h"\ngitlab_schemas = ["gitlab_main", "gitlab_shared"]\n' + "\n".join(error.shown)
    )
    pasted = load_settings(file).database("main")
    assert pasted.table_schemas == dict.fromkeys(tables[:-1], "gitlab_main")
    assert TableLabels("main", pasted).of_all(tables) == dict.fromkeys(tables, "gitlab_main")


def test_lines_are_added_to_a_section_that_exists() -> None:
    own = labels(["gitlab_main"], {"public.a": "gitlab_main"})
    assert refusal(own, "public.b", "public.c").shown == (
        "# to add under [databases.main.table_schemas]:",
        '"public.b" = "gitlab_main"',
        '"public.c" = "gitlab_main"',
    )
    assert str(refusal(own, "public.b")) == (
        "no gitlab schema is known for table public.b;"
        ' add "public.b" = "gitlab_main" under [databases.main.table_schemas]'
    )


def test_choice_is_left_to_the_operator_and_its_line_is_refused_until_made(tmp_path: Path) -> None:
    error = refusal(labels(["gitlab_main", "gitlab_ci"]), "public.a", "public.virtual_storages")
    assert error.shown == (
        "[databases.main.table_schemas]",
        '"public.a" = ""  # gitlab_main or gitlab_ci',
        '"public.virtual_storages" = ""  # praefect, which the database\'s gitlab_schemas lack',
    )
    assert "list the gitlab schema under [databases.main], or add each" in error.remedy
    assert tomllib.loads("\n".join(error.shown))
    file = tmp_path / "headrace.toml"
    start = '[databases.main]\ndsn = "host=h"\ngitlab_schemas = ["gitlab_main", "gitlab_ci"]\n'
    file.write_text(start + "\n".join(error.shown))
    with pytest.raises(SettingsError, match=r'main\.table_schemas\."public\.a": a name has 1 to 63'):
        load_settings(file)


def test_table_of_a_gitlab_schema_that_the_database_lacks() -> None:
    error = refusal(labels(["gitlab_main"]), "public.ci_builds")
    assert error.problem == (
        "table public.ci_builds belongs to gitlab_ci, and the database's gitlab_schemas are gitlab_main"
    )
    error = refusal(labels(["gitlab_main"], gitlab_dictionary=DOCS), "public.schema_migrations")
    assert "belongs to gitlab_internal" in error.problem


def test_database_of_another_system_may_have_tables_named_as_gitlabs() -> None:
    own = {"dsn": "host=h", "gitlab_schemas": ["shop"], "table_schemas": {"public.orders": "shop"}}
    error = refusal(TableLabels("shop", DatabaseSettings.model_validate(own)), "public.issues", "public.events")
    assert error.shown[1:] == ('"public.issues" = "shop"', '"public.events" = "shop"')


def test_examples_of_the_documentation_do_what_it_says(tmp_path: Path) -> None:
    page = Path(__file__).parents[3] / "docs" / "reference" / "gitlab-schemas.md"
    shop, patterns, dictionary = re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    file = tmp_path / "headrace.toml"
    file.write_text(shop)
    assert TableLabels("shop", load_settings(file).database("shop")).of("public.orders") == "shop"
    file.write_text(patterns)
    tables = ("public.projects", "public.ci_builds", "public.ci_settings")
    found = TableLabels("main", load_settings(file).database("main")).of_all(tables)
    assert [*found.values()] == ["gitlab_main", "gitlab_ci", "gitlab_shared"]
    file.write_text(patterns + '"public.*_metadata" = "gitlab_main"\n')
    with pytest.raises(SettingsError, match=r'"public\.\*_metadata" \(gitlab_main\) and "public\.ci_\*" \(gitlab_ci\)'):
        load_settings(file)
    file.write_text(dictionary)
    (tmp_path / "gitlab" / "db").mkdir(parents=True)
    (tmp_path / "gitlab" / "db" / "docs").symlink_to(DOCS)
    assert TableLabels("main", load_settings(file).database("main")).of("public.users") == "gitlab_main_user"


def test_every_table_of_a_database_that_is_not_gitlabs_has_its_name(tmp_path: Path) -> None:
    file = tmp_path / "headrace.toml"
    file.write_text('[databases.shop]\ndsn = "host=h"\ntables = ["public.*"]\n')
    section = load_settings(file).database("shop")
    assert section.gitlab_schemas == ("shop",)
    tables = ["public.orders", "public.projects", "sales.with.dot", "public.ci_builds"]
    assert TableLabels("shop", section).of_all(tables) == dict.fromkeys(tables, "shop")
