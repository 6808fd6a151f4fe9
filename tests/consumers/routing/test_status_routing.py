"""The code path of a repository by its migration status: every status, none, and an unknown one."""

import pytest

from consumers.routing.status_routing import CodePath, Status, UnknownStatus, code_path, status_of


@pytest.mark.parametrize("status", Status)
def test_only_native_and_import_complete_are_served_from_the_database(status: Status) -> None:
    complete = status in ("native", "import_complete")
    assert code_path(status.value) is (CodePath.DATABASE if complete else CodePath.OLD)


def test_statuses_match_the_registry() -> None:
    imports = {
        f"{kind}import_{end}" for kind in ("", "pre_") for end in ("in_progress", "complete", "failed", "canceled")
    }
    assert {status.value for status in Status} == {"native"} | imports


@pytest.mark.parametrize("empty", [None, ""])
def test_repository_without_a_status_is_native(empty: str | None) -> None:
    assert status_of(empty) is Status.NATIVE
    assert code_path(empty) is CodePath.DATABASE


@pytest.mark.parametrize("unknown", ["Native", "native ", "importing", "NULL", "x" * 255])
def test_unknown_status_is_refused(unknown: str) -> None:
    with pytest.raises(UnknownStatus, match="unknown migration status") as refused:
        code_path(unknown)
    assert refused.value.exit_code == 3
    assert len(str(refused.value)) < 250
