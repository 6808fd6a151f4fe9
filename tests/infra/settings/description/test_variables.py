"""The variable that sets a key: exact, a list or table in JSON, and names of options with dots."""

from __future__ import annotations

import os

import pytest

from infra.settings.description.variables import variable_name, variable_of
from infra.settings.mistakes import Location


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.upper().startswith("HEADRACE_")]:
        monkeypatch.delenv(variable)


@pytest.mark.parametrize(
    ("variable", "value", "key", "found"),
    [
        ("HEADRACE_PREFIX", "a", ("prefix",), True),
        ("headrace_prefix", "a", ("prefix",), True),
        ("HEADRACE_PREFIXES", "a", ("prefix",), False),
        ("HEADRACE_KAFKA__OPTIONS__SASL_PASSWORD", "a", ("kafka", "options", "sasl.password"), True),
        ("HEADRACE_DATABASES__MAIN__TABLES", '["a.b"]', ("databases", "main", "tables", 0), True),
        ("HEADRACE_KAFKA", '{"partitions": 3}', ("kafka", "partitions"), True),
        ("HEADRACE_KAFKA", '{"partitions": 3}', ("kafka", "bootstrap_servers"), False),
        ("HEADRACE_KAFKA", "no JSON", ("kafka", "bootstrap_servers"), True),
        ("HEADRACE_VIRTUAL_STORAGES__a-b__PRIMARY", "x", ("virtual_storages", "a-b", "primary"), True),
    ],
)
def test_variable_of_a_key(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, key: Location, found: bool
) -> None:
    monkeypatch.setenv(variable, value)
    assert variable_of(key) == (variable if found else None)


def test_name_of_a_variable() -> None:
    assert variable_name(("databases", "main", "dsn")) == "HEADRACE_DATABASES__MAIN__DSN"
