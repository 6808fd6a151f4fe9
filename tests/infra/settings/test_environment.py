"""Variables override the settings file; a list or a table in one is JSON."""

from __future__ import annotations

import json

import pytest

from infra.settings.environment import overridden
from infra.settings.model import Settings
from schemas.errors import SettingsError

FILE = {
    "kafka": {"partitions": 3, "options": {"acks": "all"}},
    "databases": {"main": {"dsn": "postgresql://u@h/d", "tables": ["public.a"]}},
    "migrations": {"skip_resets": {"batch_size": 3}},
}


@pytest.mark.parametrize(
    ("variables", "path", "value"),
    [
        ({"HEADRACE_PREFIX": "other"}, "prefix", "other"),
        ({"headrace_kafka__bootstrap_servers": "k:1"}, "kafka.bootstrap_servers", "k:1"),
        ({"HEADRACE_KAFKA__PARTITIONS": "7"}, "kafka.partitions", "7"),
        ({"HEADRACE_KAFKA": '{"partitions": 7}'}, "kafka", {"partitions": 7, "options": {"acks": "all"}}),
        ({"HEADRACE_KAFKA": '{"partitions": 7}', "HEADRACE_KAFKA__PARTITIONS": "8"}, "kafka.partitions", "8"),
        ({"HEADRACE_KAFKA": "[1]", "HEADRACE_KAFKA__PARTITIONS": "8"}, "kafka", [1]),
        ({"HEADRACE_KAFKA__OPTIONS__SASL_PASSWORD": "123"}, "kafka.options", {"acks": "all", "sasl_password": "123"}),
        ({"HEADRACE_DATABASES__MAIN__TABLES": '["public.b"]'}, "databases.main.tables", ["public.b"]),
        ({"HEADRACE_DATABASES__CI": '{"dsn": "d"}'}, "databases.ci", {"dsn": "d"}),
        ({"HEADRACE_DATABASES__CI": "d"}, "databases.ci", "d"),
        ({"HEADRACE_DATABASES__MAIN__SNAPSHOT__CHUNK_ROWS": "7"}, "databases.main.snapshot", {"chunk_rows": "7"}),
        ({"HEADRACE_DATABASES__MAIN__SPILL_DIRECTORY": "/tmp"}, "databases.main.spill_directory", "/tmp"),
        ({"HEADRACE_REGISTRY__OAUTH__CLIENT_SECRET": "s"}, "registry.oauth", {"client_secret": "s"}),
        ({"HEADRACE_MIGRATIONS__SKIP_RESETS__OWN": '["a"]'}, "migrations.skip_resets.own", ["a"]),
        ({"HEADRACE_MIGRATIONS__SKIP_RESETS__OWN": "a"}, "migrations.skip_resets.own", "a"),
    ],
)
def test_variable_overrides_the_file(variables: dict[str, str], path: str, value: object) -> None:
    before = json.dumps(FILE)
    found: object = overridden(FILE, Settings, variables)
    for key in path.split("."):
        assert isinstance(found, dict)
        found = found[key]
    assert found == value
    assert json.dumps(FILE) == before


@pytest.mark.parametrize("name", ["HEADRACE_NOTHING", "HEADRACE_CONFIG", "HEADRACE_SKIP_RESETS_ENABLED", "KAFKA"])
def test_other_variables_are_not_settings(name: str) -> None:
    assert overridden(FILE, Settings, {name: "x"}) == FILE


@pytest.mark.parametrize(
    "name",
    [
        "HEADRACE_PLUGIN_PATHS",
        "HEADRACE_KAFKA",
        "HEADRACE_DATABASES__MAIN__TABLES",
        "HEADRACE_DATABASES__MAIN__SNAPSHOT",
    ],
)
def test_list_or_table_that_is_not_json_is_refused_by_its_variable(name: str) -> None:
    with pytest.raises(SettingsError, match=f"^environment variable {name} is not JSON") as raised:
        overridden(FILE, Settings, {name: "s3cret", "HEADRACE_KAFKA__PARTITIONS": "1"})
    assert "s3cret" not in str(raised.value)
