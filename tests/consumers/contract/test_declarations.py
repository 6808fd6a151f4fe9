"""A migration's class is validated on discovery; a mistake is one line with a correct example."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from consumers.contract.backfill import Backfill
from consumers.contract.decisions import Decision, Skip
from consumers.contract.declarations import mistakes
from consumers.contract.migration import Migration, Options
from consumers.contract.suggested_index import SuggestedIndex
from consumers.operations.catalog import migrations
from infra.settings.model import Settings

A_TEXT: Any = "id"


class Sound(Migration):
    """Declares everything correctly."""

    name = "sound"
    gitlab_schema = "gitlab_main"
    tables = ("public.users",)
    columns = ("id", "email")

    def decide(self, event: Any) -> Decision:  # noqa: ARG002 - a contract fixes the names
        return Skip("never")

    def apply(self, cursor: Any, changes: Any) -> int:  # noqa: ARG002 - a contract fixes the names
        return 0

    def remaining(self, cursor: Any) -> int:  # noqa: ARG002 - a contract fixes the names
        return 0


class SoundBackfill(Backfill):
    """As above."""

    name = "sound_backfill"
    gitlab_schema = "registry"
    table = "public.repositories"
    key = (("id", "bigint"),)
    column, column_type = "status", "text"
    value = "native"


class TakesBatchSize(Options):
    """Has an option that never reaches it."""

    batch_size: int = 7


class Misspells(Options):
    """Names a nonexistent option."""

    not_deciding: ClassVar[tuple[str, ...]] = ("sped",)
    speed: int = 1


def found(base: Any, **declared: object) -> list[str]:
    return [f"{one.problem}; {one.example}" for one in mistakes(type("Mine", (base,), declared))]


def test_migrations_of_headrace_are_valid() -> None:
    kinds: list[type[Migration]] = [*migrations(Settings()).values(), Sound, SoundBackfill]
    for kind in kinds:
        assert list(mistakes(kind)) == []


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({"name": "LowerEmails"}, "name is 'LowerEmails'; a name has 1 to 63 lowercase letters"),
        ({"name": "LowerEmails"}, 'name = "lower_emails"'),
        ({"name": "lower-emails"}, 'name = "lower_emails"'),
        ({"name": ""}, 'name = "mine"'),
        ({"name": 7}, "name is 7 (int), not a string"),
        ({"name": "x" * 64}, "1 to 63"),
        ({"name": "läßt_nach"}, "1 to 63"),
        (
            {"tables": "public.users"},
            "tables is the string 'public.users', not a tuple: a one-element tuple needs a comma",
        ),
        ({"tables": "public.users"}, 'tables = ("public.users",)'),
        ({"tables": "users"}, "not a tuple"),
        ({"tables": ("users",)}, "tables has 'users', which is not schema.table; write tables = (\"public.users\",)"),
        ({"tables": ()}, "tables is empty"),
        ({"tables": ["public.users"]}, "not a tuple of strings"),
        ({"tables": ("public.*",)}, "'public.*', which is not schema.table"),
        ({"tables": ("a.b.c",)}, "which is not schema.table"),
        ({"tables": ("public.users", None)}, "tables has None (NoneType), not a string"),
        ({"columns": "id"}, "columns is the string 'id', not a tuple"),
        ({"columns": ("id", 5)}, "columns has 5 (int), not a string"),
        ({"columns": {"id"}}, "not a tuple of strings"),
        ({"gitlab_schema": None}, "gitlab_schema is None (NoneType), not a gitlab schema"),
        ({"gitlab_schema": "gitlab main"}, "gitlab_schema is 'gitlab main'"),
        ({"writes": "public.users"}, "writes is the string"),
        ({"writes": ("profiles",)}, "writes has 'profiles'"),
        ({"optional_columns": ("born",)}, "optional_columns has born, which is not in columns"),
        ({"mentions": "import_skipped"}, "mentions is the string"),
        ({"suggested_indexes": SuggestedIndex("public.users", ("id",), "true")}, "a one-element tuple needs a comma"),
        ({"suggested_indexes": (SuggestedIndex("users", ("id",), "true"),)}, "which is not schema.table"),
        ({"suggested_indexes": (SuggestedIndex("public.users", A_TEXT, "true"),)}, "not a tuple of strings"),
        ({"version": "2"}, "version is '2' (str), not a positive integer"),
        ({"version": 0}, "version is 0"),
        ({"version": True}, "version is True"),
        ({"continuous": "no"}, "continuous is 'no' (str), not True or False"),
        ({"own_tables": ("CREATE",)}, "not a string of SQL"),
        ({"shared": "PER_DATABASE"}, "not a Shared; shared = Shared.PER_DATABASE"),
        ({"options_type": dict}, "options_type is the class dict, not a subclass of Options"),
        ({"options_type": TakesBatchSize}, "options_type has batch_size, which is a setting of every migration"),
        ({"options_type": Misspells}, "options_type.not_deciding has sped, which is not one of its options"),
    ],
)
def test_mistake_is_reported_with_correct_example(declared: dict[str, object], said: str) -> None:
    assert any(said in one for one in found(Sound, **declared)), found(Sound, **declared)


@pytest.mark.parametrize("attribute", ["name", "gitlab_schema", "tables", "columns"])
def test_attribute_without_default_must_be_declared(attribute: str) -> None:
    rest = {name: value for name, value in vars(Sound).items() if not name.startswith("_") and name != attribute}
    (one,) = found(Migration, **rest)
    assert one.startswith(f"declares no {attribute}; {attribute} = ")


def test_missing_method_is_named() -> None:
    rest = {name: value for name, value in vars(Sound).items() if not name.startswith("_") and name != "remaining"}
    (one,) = found(Migration, **rest)
    assert one.startswith("lacks remaining; ")


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({"table": "repositories"}, "table is 'repositories' (str), not a table as schema.table"),
        ({"key": ("id",)}, "key is ('id',) (tuple), not a tuple of (column, type) pairs"),
        ({"key": (("id", "bigint"))}, "not a tuple of (column, type) pairs"),
        ({"key": 7}, "not a tuple of (column, type) pairs"),
        ({"column": ("status",)}, "not a column's name"),
        ({"column_type": str}, "column_type is the class str, not an SQL type"),
        ({"checks": ("length", "true")}, "checks is"),
    ],
)
def test_backfill_is_validated_before_derivation(declared: dict[str, object], said: str) -> None:
    assert said in found(SoundBackfill, **declared)[0]


@pytest.mark.parametrize("attribute", ["table", "key", "column", "column_type", "value"])
def test_backfill_without_declaration_can_be_defined_and_is_reported(attribute: str) -> None:
    rest = {name: value for name, value in vars(SoundBackfill).items() if not name.startswith("_")}
    for derived in ("tables", "columns", "optional_columns", attribute):
        rest.pop(derived)
    assert found(Backfill, **rest)[0].startswith(f"declares no {attribute}; ")


def test_described_value_is_short_and_on_one_line() -> None:
    (one,) = found(Sound, mentions=["x\n" * 500])
    assert len(one) < 150
    assert "\n" not in one
