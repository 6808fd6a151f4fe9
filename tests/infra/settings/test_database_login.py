"""`dsn`, `password_command` and `provider` of a database."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.settings.database_login import Address, address_of
from infra.settings.file import load_settings
from infra.settings.model import DatabaseSettings
from infra.settings.providers import PROVIDERS, SELF_MANAGED
from schemas.errors import SettingsError

SECTION = '[databases.shop]\ndsn = "postgresql://me@host:1/shop"\n'


def loaded(tmp_path: Path, text: str) -> DatabaseSettings:
    path = tmp_path / "headrace.toml"
    path.write_text(text)
    return load_settings(path).database("shop")


def test_address_has_the_command_and_shows_no_connection_string(tmp_path: Path) -> None:
    section = loaded(tmp_path, SECTION + 'password_command = ["print-it", "--for", "me"]\nprovider = "rds"\n')
    address = section.address
    assert address == Address("postgresql://me@host:1/shop", ("print-it", "--for", "me"))
    assert address.place == "PostgreSQL at host:1/shop"
    assert "postgresql://" not in repr(address)
    assert "print-it" not in repr(section), "an argument may be a secret"
    added = address.adding(replication="database", application_name=None)
    assert (added.dsn, added.password_command) == (
        "user=me dbname=shop host=host port=1 replication=database",
        address.password_command,
    )
    assert address_of("dbname=x") == Address("dbname=x")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            'provider = "rsd"',
            r"databases\.shop\.provider: no provider is called rsd, did you mean rds\? \(aurora, ",
        ),
        ('password_command = "print-it"', r"databases\.shop\.password_command: must be a list"),
        ('password_command = [""]', r"databases\.shop\.password_command\.0: "),
    ],
)
def test_mistakes_are_named(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        loaded(tmp_path, f"{SECTION}{line}\n")


def test_password_and_command_exclude_each_other(tmp_path: Path) -> None:
    text = SECTION.replace("me@", "me:secret@") + 'password_command = ["print-it"]\n'
    with pytest.raises(SettingsError, match="password_command and a password in the dsn exclude each other") as raised:
        loaded(tmp_path, text)
    assert "secret" not in str(raised.value)


def test_only_a_self_managed_server_has_alter_system_in_its_remedies() -> None:
    assert list(PROVIDERS)[-1] == SELF_MANAGED, "it has no signs"
    for name, each in PROVIDERS.items():
        texts = (each.logical, each.keep_size.format(source="main"), each.slots, each.replicating('a "b"'))
        assert any("ALTER SYSTEM" in text for text in texts) == (name == SELF_MANAGED), name
        assert "allow_unlimited_wal = true" in texts[1], name
        assert "{" not in "".join(texts), name
        assert '"a ""b"""' in texts[3], name
        assert each.superuser == (name == SELF_MANAGED)
        assert bool(each.roles or each.settings or each.functions) == (name != SELF_MANAGED), name


def test_each_provider_has_a_page_that_is_linked() -> None:
    docs = Path(__file__).parents[3] / "docs"
    pages = {path.stem: path.read_text() for path in (docs / "how-to" / "providers").glob("*.md")}
    assert pages.keys() == PROVIDERS.keys() - {SELF_MANAGED}
    index = (docs / "README.md").read_text()
    for name, text in pages.items():
        assert f"how-to/providers/{name}.md" in index
        assert f"--provider {name}" in text
        assert "https://" in text, "the provider's own document"
