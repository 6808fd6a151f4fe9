"""A pytest plugin for repositories with migrations of their own, found by the entry point `headrace` of `pytest11`.

It adds the fixtures `headrace_stack` and `headrace_contract`. In a run that uses neither it loads nothing of headrace.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from consumers.testing.author_contract import Contract
    from infra.stack import Stack

# An assertion that fails in these shows its values, as in a test.
pytest.register_assert_rewrite("consumers.testing.promises")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes `headrace_contract` once for each promise."""
    if "headrace_contract" in metafunc.fixturenames:
        from consumers.testing.promises import PROMISES  # noqa: PLC0415 - see above

        metafunc.parametrize("headrace_contract", PROMISES, indirect=True)


@pytest.fixture(scope="session")
def headrace_stack() -> Iterator[Stack]:
    """Kafka and PostgreSQL, embedded, for the whole session; nothing of them remains."""
    from infra.stack import embedded_stack  # noqa: PLC0415 - see above
    from infra.stack.extra import StackNotInstalled  # noqa: PLC0415 - see above

    try:
        stack = embedded_stack()
    except StackNotInstalled as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None
    with stack as running:
        yield running


@pytest.fixture
def headrace_contract(
    request: pytest.FixtureRequest, headrace_stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Contract:
    """Check the promise that is this run's; see Contract."""
    from consumers.delivery import group  # noqa: PLC0415 - see above
    from consumers.testing import waiting  # noqa: PLC0415 - see above
    from consumers.testing.author_contract import Contract  # noqa: PLC0415 - see above

    # The settings of the author's own servers.
    for name in [name for name in os.environ if name.startswith("HEADRACE_")]:
        monkeypatch.delenv(name)
    # A consumer has left its group when it returns, however slow the machine is.
    monkeypatch.setattr(group, "_LEAVE_SECONDS", waiting.PATIENCE)
    return Contract(request.param, headrace_stack, tmp_path, pytest.skip)
