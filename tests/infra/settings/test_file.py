"""The place of a mistake in the settings; tests/infra/settings/test_model.py has every kind of mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.settings.file import InvalidSettings, load_settings, place_of_section

MAIN = """
[databases.main]
dsn = "postgresql://h/d"
gitlab_schemas = ["gitlab_main"]
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{MAIN}tabels = []", ":5: unknown key databases.main.tabels"),
        (f"{MAIN}\n[kafka]\npartitions = 0", ":7: kafka.partitions: must be 1 or more"),
        (MAIN.replace("dsn =", "slot ="), ":2: databases.main.dsn is missing (and 1 more)"),
        (MAIN.replace('dsn = "postgresql://h/d"', ""), ":2: databases.main.dsn is missing"),
        (f"a = 1\n{MAIN}b = 2\n[c]", ":1: unknown key a (and 2 more)"),
    ],
)
def test_a_mistake_has_its_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "some.toml"
    file.write_text(text)
    with pytest.raises(InvalidSettings) as caught:
        load_settings(file)
    assert str(caught.value).startswith(f"settings file {file}{said}")


def test_place_of_a_section_is_its_line_or_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "some.toml"
    section = 'table = "public.users"\nwhere = "a"\nset = { b = "c" }'
    file.write_text(f"{MAIN}[migrations.one]\nbatch_size = 5\n[migrations.one.declare]\n{section}\n")
    assert place_of_section(load_settings(file), "migrations", "one", "declare") == f"{file}:7"
    monkeypatch.setenv("HEADRACE_MIGRATIONS__TWO__DECLARE", '{"table": "public.a", "where": "b", "set": {"c": "d"}}')
    settings = load_settings(file)
    assert settings.migrations["two"].declare is not None
    variable = "environment variable HEADRACE_MIGRATIONS__TWO__DECLARE"
    assert place_of_section(settings, "migrations", "two", "declare") == variable
    assert place_of_section(settings.model_construct(), "migrations", "one") == "the settings"
