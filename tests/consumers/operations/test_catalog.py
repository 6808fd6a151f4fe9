from __future__ import annotations

from collections.abc import Sequence

import pytest

from consumers.contract.decisions import Change, Decision, Skip
from consumers.contract.migration import Cursor, Migration, Shared
from consumers.delivery.topics import source_topics
from consumers.operations import catalog
from consumers.operations.catalog import migration_class, migrations, target_database
from infra.settings.model import Settings
from schemas.errors import SettingsError, UsageError
from schemas.events import ChangeEvent
from schemas.gitlab_schemas import PER_DATABASE
from tests.consumers.known_migrations import known_are


class Everywhere(Migration):
    """Writes a gitlab_shared table."""

    name = "everywhere"
    gitlab_schema = "gitlab_shared"
    tables = ("public.detached_partitions",)
    columns = ("id",)

    def decide(self, event: ChangeEvent) -> Decision:  # noqa: ARG002 - a contract fixes the names
        return Skip("never")

    def apply(self, cursor: Cursor, changes: Sequence[Change]) -> int:  # noqa: ARG002 - a contract fixes the names
        return 0

    def remaining(self, cursor: Cursor) -> int:  # noqa: ARG002 - a contract fixes the names
        return 0


class OncePerDatabase(Everywhere):
    """Declares that it runs once per database."""

    shared = Shared.PER_DATABASE


def settings(**schemas: list[str]) -> Settings:
    databases = {name: {"dsn": "postgresql://h/d", "gitlab_schemas": known} for name, known in schemas.items()}
    return Settings.model_validate({"databases": databases})


def test_catalog_finds_skip_resets_by_file_name() -> None:
    for name, kind in migrations(Settings()).items():
        assert kind.__module__ == f"consumers.migrations.{name}"
    assert "skip_resets" in migrations(Settings())


def test_unknown_migration_is_refused_with_suggestion_and_list() -> None:
    with pytest.raises(UsageError, match=r"'skip_reset'; did you mean skip_resets\? known: .*skip_resets"):
        migration_class(Settings(), "skip_reset")


def test_unknown_gitlab_schema_is_broken_unless_the_settings_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    mistyped = type("Mistyped", (Everywhere,), {"name": "mistyped", "gitlab_schema": "gitlab_mian"})
    known_are(monkeypatch, {"mistyped": mistyped})
    assert "mistyped" in catalog.broken(Settings())
    assert "did you mean gitlab_main?" in str(catalog.broken(settings(main=["gitlab_main"]))["mistyped"])
    own = {"dsn": "postgresql://h/d", "gitlab_schemas": ["gitlab_mian"], "table_schemas": {"a.b": "gitlab_mian"}}
    assert "mistyped" not in catalog.broken(Settings.model_validate({"databases": {"main": own}}))
    with pytest.raises(UsageError, match=r"lists gitlab_mian.*did you mean gitlab_main\?"):
        target_database(settings(main=["gitlab_main"]), mistyped)


def test_target_is_the_only_database_that_lists_the_schema() -> None:
    kind = migration_class(Settings(), "skip_resets")
    assert target_database(settings(main=["gitlab_main"], ci=["gitlab_ci"]), kind) == "main"
    with pytest.raises(UsageError, match="several databases: ci, main"):
        target_database(settings(main=["gitlab_main"], ci=["gitlab_main"]), kind)
    with pytest.raises(UsageError, match=r"no database in the settings lists gitlab_main.*in the settings: ci"):
        target_database(settings(ci=["gitlab_ci"]), kind)


def test_settings_choose_the_target() -> None:
    both = settings(main=["gitlab_main"], ci=["gitlab_main"])
    chosen = both.model_copy(update={"migrations": {"skip_resets": _section(database="ci")}})
    assert target_database(chosen, migration_class(Settings(), "skip_resets")) == "ci"


def test_shared_migration_is_refused_unless_it_declares_per_database() -> None:
    known = settings(main=["gitlab_shared"])
    with pytest.raises(UsageError, match="gitlab_shared tables, which every database has"):
        target_database(known, Everywhere)
    assert target_database(known, OncePerDatabase) == "main"


@pytest.mark.parametrize("gitlab_schema", sorted(PER_DATABASE))
def test_migration_over_tables_of_every_database_is_not_moved_by_a_switchover(gitlab_schema: str) -> None:
    kind = type("Each", (OncePerDatabase,), {"gitlab_schema": gitlab_schema})
    both = settings(main=[gitlab_schema], ci=[gitlab_schema])
    topics = {tuple(source_topics(both, kind, database)) for database in catalog.listing(both, gitlab_schema)}
    assert len(topics) == 2, "each database has its own"
    with pytest.raises(UsageError, match=f"{gitlab_schema} tables, which every database has"):
        target_database(both, type("Once", (Everywhere,), {"gitlab_schema": gitlab_schema}))


def test_unknown_option_is_reported() -> None:
    with pytest.raises(SettingsError, match=r"unknown key migrations.skip_resets.clear_shiped_columns"):
        catalog.configured(_with(clear_shiped_columns=True), "skip_resets")
    with pytest.raises(SettingsError, match=r"migrations.skip_resets.clear_shipped_columns: "):
        catalog.configured(_with(clear_shipped_columns="perhaps"), "skip_resets")


def _section(**values: object) -> object:
    return _with(**values).migrations["skip_resets"]


def _with(**values: object) -> Settings:
    return Settings.model_validate({"migrations": {"skip_resets": values}})
