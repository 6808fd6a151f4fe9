"""The order of a backfill's releases, and the next statement from any state that a killed one left."""

from __future__ import annotations

import pytest

from consumers.contract.backfill import Backfill
from consumers.migrations.status_backfills import StatusBackfills
from consumers.schema.plan import NOT_NULL, Found, OutOfOrder, Release, expanded, next_step, refusal

LENGTH, REQUIRED = (StatusBackfills.constraint(check) for check in ("length", NOT_NULL))
TABLE = ("public", "repositories")

NOTHING = Found()
COLUMN_ONLY = Found("text")
UNVALIDATED = Found("text", checks={LENGTH: [TABLE]})
EXPANDED = Found("text", checks={LENGTH: []}, empty=0, foreign=0)
CONTRACTING = Found("text", checks={LENGTH: [], REQUIRED: [TABLE]})
CONTRACTED = Found("text", checks={LENGTH: [], REQUIRED: []})
FILLED = Found("text", checks={LENGTH: []}, empty=0, foreign=0, begun=True)
EMPTY_ROWS = Found("text", checks={LENGTH: []}, empty=7)
IN_USE = Found("text", checks={LENGTH: []}, empty=0, foreign=1)
OTHER_TYPE = Found("integer", right_type=False)

ALLOWED = {
    Release.EXPAND: [NOTHING, COLUMN_ONLY, UNVALIDATED, EXPANDED, CONTRACTED, FILLED, EMPTY_ROWS],
    Release.BACKFILL: [EXPANDED, EMPTY_ROWS, FILLED, CONTRACTING, CONTRACTED],
    Release.CONTRACT: [EXPANDED, FILLED, CONTRACTING, CONTRACTED],
    Release.CONTRACT_DOWN: [NOTHING, EXPANDED, CONTRACTING, CONTRACTED],
    Release.BACKFILL_DOWN: [NOTHING, EXPANDED, EMPTY_ROWS, FILLED],
    Release.EXPAND_DOWN: [NOTHING, COLUMN_ONLY, UNVALIDATED, EXPANDED, EMPTY_ROWS],
}
REFUSED = {
    Release.EXPAND: [(OTHER_TYPE, "does not have the type")],
    Release.BACKFILL: [(NOTHING, "schema expand"), (COLUMN_ONLY, "schema expand"), (UNVALIDATED, "schema expand")],
    Release.CONTRACT: [
        (NOTHING, "schema expand"),
        (UNVALIDATED, "schema expand"),
        (EMPTY_ROWS, "7 rows of public.repositories have no migration_status; run `headrace schema backfill"),
    ],
    Release.BACKFILL_DOWN: [(CONTRACTED, "contract status_backfills --down"), (CONTRACTING, "contract status_backf")],
    Release.EXPAND_DOWN: [
        (CONTRACTED, "contract status_backfills --down"),
        (FILLED, "backfill status_backfills --down"),
        (IN_USE, "would be lost"),
        (OTHER_TYPE, "does not have the type"),
    ],
}


@pytest.mark.parametrize(("release", "found"), [(release, each) for release in ALLOWED for each in ALLOWED[release]])
def test_release_runs_after_its_predecessor_and_is_repeatable(release: Release, found: Found) -> None:
    assert refusal(release, StatusBackfills, found) is None


@pytest.mark.parametrize(
    ("release", "found", "said"), [(r, *each) for r, refused in REFUSED.items() for each in refused]
)
def test_release_out_of_order_is_refused_with_remedy(release: Release, found: Found, said: str) -> None:
    refused = refusal(release, StatusBackfills, found)
    assert isinstance(refused, OutOfOrder)
    assert refused.exit_code == 3
    assert said in str(refused)


def statements(release: Release, *stages: Found) -> list[str | None]:
    steps = [next_step(release, StatusBackfills, found) for found in stages]
    return [step.statement.as_string(None).replace('"', "") if step else None for step in steps]


def test_expand_executes_the_seeds_three_statements() -> None:
    assert statements(Release.EXPAND, NOTHING, COLUMN_ONLY, UNVALIDATED, EXPANDED) == [
        "ALTER TABLE public.repositories ADD COLUMN IF NOT EXISTS migration_status text",
        "ALTER TABLE public.repositories ADD CONSTRAINT check_repositories_migration_status_length"
        " CHECK (char_length(migration_status) <= 255) NOT VALID",
        "ALTER TABLE public.repositories VALIDATE CONSTRAINT check_repositories_migration_status_length",
        None,
    ]


def test_contract_executes_the_seeds_two_statements() -> None:
    assert statements(Release.CONTRACT, EXPANDED, CONTRACTING, CONTRACTED) == [
        "ALTER TABLE public.repositories ADD CONSTRAINT check_repositories_migration_status_not_null"
        " CHECK (migration_status IS NOT NULL) NOT VALID",
        "ALTER TABLE public.repositories VALIDATE CONSTRAINT check_repositories_migration_status_not_null",
        None,
    ]


def test_down_undoes_only_its_release() -> None:
    assert statements(Release.CONTRACT_DOWN, CONTRACTING, CONTRACTED, EXPANDED) == [
        *["ALTER TABLE public.repositories DROP CONSTRAINT IF EXISTS check_repositories_migration_status_not_null"] * 2,
        None,
    ]
    assert statements(Release.EXPAND_DOWN, UNVALIDATED, NOTHING) == [
        "ALTER TABLE public.repositories DROP COLUMN IF EXISTS migration_status",
        None,
    ]


def test_only_validate_is_not_exclusive() -> None:
    exclusive = [next_step(Release.EXPAND, StatusBackfills, each) for each in (NOTHING, COLUMN_ONLY, UNVALIDATED)]
    assert [step and step.exclusive for step in exclusive] == [True, True, False]


def test_partitions_are_validated_one_by_one_before_the_table_itself() -> None:
    left = [("parts", "repositories_1"), TABLE]
    step = next_step(Release.EXPAND, StatusBackfills, Found("text", checks={LENGTH: left}))
    assert step is not None
    assert '"parts"."repositories_1"' in step.statement.as_string(None)


def test_backfill_without_checks_is_expanded_once_its_column_exists() -> None:
    class Bare(Backfill):
        name, gitlab_schema, table, key = "bare", "registry", "public.t", (("id", "bigint"),)
        column, column_type, value = "c", "text", "v"

    assert expanded(Bare, Found("text"))


def test_long_constraint_name_is_cut_at_the_front() -> None:
    class Long(Backfill):
        name, gitlab_schema, table, key = "long", "registry", f"public.{'tä' * 30}", (("id", "bigint"),)
        column, column_type, value = "column", "text", "v"

    length, required = Long.constraint("length"), Long.constraint(NOT_NULL)
    assert (length.endswith("_length"), required.endswith("_not_null")) == (True, True)
    assert 60 < len(length.encode()) <= 63
    assert len(required.encode()) <= 63
