"""The effective settings: each key with its origin, and no secret."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

from infra.settings.description.effective import Origin, Setting, as_toml, effective
from infra.settings.file import load_settings

SECRET = "s3cret-of-the-test"
TEXT = f"""prefix = "mine"
[kafka]
partitions = 7
[kafka.options]
"sasl.password" = "{SECRET}"
"security.protocol" = "SASL_SSL"
[registry]
url = "https://me:{SECRET}@h"
[databases.shop]
dsn = "postgresql://u:{SECRET}@h:5432/d?sslpassword={SECRET}"
tables = [
  "public.a",
  'public."odd"',
]
[virtual_storages."a b"]
database = "shop"
primary = "x"
[virtual_storages."a b".storages.x]
address = "tcp://h:1"
token = "{SECRET}"
[migrations.known]
batch_size = 5
size = 3
key = "{SECRET}"
[migrations.other]
key = "{SECRET}"
"""


class Options(BaseModel):
    size: int = 1
    colour: str = "red"
    key: SecretStr = SecretStr("")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.upper().startswith("HEADRACE_")]:
        monkeypatch.delenv(variable)


def found(directory: Path, text: str = TEXT) -> list[Setting]:
    file = directory / "some.toml"
    file.write_text(text)
    return effective(file, load_settings(file), {"known": Options})


def test_each_key_has_its_origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_KAFKA__BOOTSTRAP_SERVERS", "k:1")
    monkeypatch.setenv("HEADRACE_KAFKA__OPTIONS__SASL_USERNAME", "me")
    monkeypatch.setenv("HEADRACE_KNOWN_ENABLED", "false")
    by_key = {each.key: each for each in found(tmp_path)}

    def origin(*key: str) -> tuple[Any, Origin, int | None, str | None]:
        each = by_key[key]
        return each.value, each.origin, each.line, each.variable

    assert origin("format") == (1, Origin.DEFAULT, None, None)
    assert origin("prefix") == ("mine", Origin.FILE, 1, None)
    assert origin("kafka", "partitions") == (7, Origin.FILE, 3, None)
    assert origin("kafka", "bootstrap_servers") == (
        "k:1",
        Origin.ENVIRONMENT,
        None,
        "HEADRACE_KAFKA__BOOTSTRAP_SERVERS",
    )
    assert origin("kafka", "options", "sasl.username")[2:] == (None, "HEADRACE_KAFKA__OPTIONS__SASL_USERNAME")
    assert origin("kafka", "replication_factor") == (-1, Origin.DEFAULT, None, None)
    assert origin("databases", "shop", "tables") == (["public.a", 'public."odd"'], Origin.FILE, 11, None)
    assert origin("databases", "shop", "gitlab_schemas") == (["shop"], Origin.DEFAULT, None, None)
    assert origin("databases", "shop", "snapshot", "chunk_rows") == (50_000, Origin.DEFAULT, None, None)
    assert origin("databases", "shop", "slot") == (None, Origin.DEFAULT, None, None)
    assert origin("migrations", "known", "size") == (3, Origin.FILE, 23, None)
    assert origin("migrations", "known", "colour") == ("red", Origin.DEFAULT, None, None)
    assert origin("migrations", "known", "enabled") == (False, Origin.ENVIRONMENT, None, "HEADRACE_KNOWN_ENABLED")


def test_secrets_are_masked_and_so_are_options_of_an_unknown_migration(tmp_path: Path) -> None:
    settings = found(tmp_path)
    assert SECRET not in repr(settings)
    assert SECRET not in as_toml(settings)
    by_key = {each.key: each.value for each in settings}
    assert by_key["databases", "shop", "dsn"] == "user=u host=h port=5432 dbname=d password=**********"
    assert by_key["registry", "url"] == "https://**********@h"
    assert by_key["kafka", "options", "sasl.password"] == "**********"
    assert by_key["kafka", "options", "security.protocol"] == "SASL_SSL"
    assert by_key["migrations", "known", "key"] == "**********"
    assert by_key["migrations", "other", "key"] == "**********"
    assert by_key["virtual_storages", "a b", "storages", "x", "token"] == "**********"
    wrong = {each.key: each.value for each in found(tmp_path, TEXT.replace("size = 3", f'size = "{SECRET}"'))}
    assert wrong["migrations", "known", "size"] == "**********", "an invalid value may be a secret in the wrong place"


def test_document_is_toml_with_the_same_values(tmp_path: Path) -> None:
    settings = found(tmp_path)
    text = as_toml(settings)
    document = tomllib.loads(text)
    for each in settings:
        value: Any = document
        for part in each.key if each.value is not None else ():
            value = value[part]
        assert value == each.value or each.value is None, each.key
    lines = text.splitlines()
    assert 'prefix = "mine"  # line 1' in lines
    assert "# slot is not set" in lines
    assert '[virtual_storages."a b".storages.x]' in lines
