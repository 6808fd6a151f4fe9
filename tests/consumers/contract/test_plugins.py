"""Migrations outside headrace are found, and a broken one is a line with its place that affects no other."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import pytest

from consumers.contract.discovery import BUILT_IN, Discovered, discover
from consumers.contract.plugins import in_folder, installed
from consumers.operations import catalog
from infra.settings.file import load_settings
from infra.settings.model import Settings
from schemas.errors import UsageError
from tests.consumers.contract.authors import sound

SOUND = sound("lower_emails")
BASELESS = SOUND.replace("class Lowers(Migration)", "class Lowers")
KINDS: Mapping[str, tuple[str, str]] = {
    "syntax_error": (
        "x = 1\n\ndef broken(:\n",
        "syntax_error.py:3: cannot be imported: SyntaxError: invalid syntax; fix the file, or install what it imports",
    ),
    "import_error": (
        "import pandas_that_is_nowhere\n",
        "import_error.py:1: cannot be imported: ModuleNotFoundError: No module named 'pandas_that_is_nowhere';"
        " fix the file, or install what it imports",
    ),
    "wrong_base": (
        BASELESS,
        "wrong_base.py:7: class Lowers is not derived from Migration;"
        " write: from headrace import Migration, and class Lowers(Migration)",
    ),
    "skip_resets": (
        sound("skip_resets"),
        "skip_resets.py:7: class Lowers has the same name, skip_resets, as class SkipResets in ",
    ),
    "no_name": (
        sound("x", name=""),
        'no_name.py:7: class Lowers declares no name; fix it, for example: name = "lowers"',
    ),
    "no_schema": (
        sound("no_schema", tables='tables = ("users",)'),
        "no_schema.py:7: class Lowers tables has 'users', which is not schema.table; write tables = (\"public.users\",)"
        '; fix it, for example: tables = ("public.users",)',
    ),
    "no_comma": (
        sound("no_comma", tables='tables = ("public.users")'),
        "no_comma.py:7: class Lowers tables is the string 'public.users', not a tuple: a one-element tuple needs a"
        ' comma; fix it, for example: tables = ("public.users",)',
    ),
    "capitals": (
        sound("LowerEmails"),
        "capitals.py:7: class Lowers name is 'LowerEmails'; a name has 1 to 63 lowercase letters, digits and"
        ' underscores, and starts with a letter; fix it, for example: name = "lower_emails"',
    ),
    "raises": (
        "def fail():\n    raise ValueError('two\\nlines')\n\n\nfail()\n",
        "raises.py:2: cannot be imported: ValueError: two lines; fix the file, or install what it imports",
    ),
    "old_api": (
        SOUND.replace('    name = "', '    headrace_api = 0\n    name = "'),
        "old_api.py:7: class Lowers is written for API version 0, and this headrace has version 1;"
        " fix it, for example: headrace_api = 1, after the changes that docs/changelog.md lists",
    ),
    "older_name": (
        "from headrace import Migration, Sifting\n",
        "older_name.py:1: cannot be imported: ImportError: cannot import name 'Sifting' from 'headrace',"
        " version 1 of its API; fix the file, or install what it imports",
    ),
}
"""File name → its text, and the line that it is reported with."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "migrations"
    made.mkdir(mode=0o755)
    return made


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for stem, text in files.items():
        (folder / f"{stem}.py").write_text(text)
    return folder


def settings_of(*folders: Path) -> Settings:
    return Settings.model_validate({"plugin_paths": folders})


@pytest.mark.parametrize("kind", KINDS)
def test_broken_file_is_one_line_with_its_place_and_affects_no_other(folder: Path, kind: str) -> None:
    text, said = KINDS[kind]
    settings = settings_of(write(folder, **{kind: text, "fine": SOUND}))
    assert {"lower_emails", "skip_resets"} <= catalog.migrations(settings).keys()
    (entry,) = catalog.broken(settings).values()
    assert str(entry).startswith(f"{folder}/{said}")
    assert "\n" not in str(entry)
    assert entry.origin == str(folder)


def test_broken_migration_is_refused_by_name_with_its_line(folder: Path) -> None:
    settings = settings_of(write(folder, no_comma=KINDS["no_comma"][0]))
    with pytest.raises(UsageError, match=r"migration no_comma: .*no_comma\.py:7: class Lowers tables is the string"):
        catalog.migration_class(settings, "no_comma")


def test_name_of_a_built_in_migration_stays_its_own(folder: Path) -> None:
    settings = settings_of(write(folder, mine=sound("skip_resets")))
    assert catalog.migration_class(settings, "skip_resets").__module__ == "consumers.migrations.skip_resets"
    assert catalog.origins(settings)["skip_resets"] == BUILT_IN
    (name,) = catalog.broken(settings)
    assert name == f"skip_resets ({folder}/mine.py:7)"


def test_one_name_in_two_folders_is_refused(tmp_path: Path) -> None:
    settings = settings_of(*(write(tmp_path / name, mine=SOUND) for name in ("a", "b")))
    assert "lower_emails" not in catalog.migrations(settings)
    assert f"as class Lowers in {tmp_path}/a/mine.py:7" in str(catalog.broken(settings)["lower_emails"])


def test_same_file_name_in_two_folders_is_two_migrations(tmp_path: Path) -> None:
    settings = settings_of(*(write(tmp_path / name, mine=sound(f"lower_{name}")) for name in ("a", "b")))
    assert {"lower_a", "lower_b"} <= catalog.migrations(settings).keys()
    assert catalog.broken(settings) == {}


def test_tests_cases_and_private_files_are_no_migrations_and_may_be_imported(folder: Path) -> None:
    failing = "raise AssertionError\n"
    write(folder, test_mine=failing, mine_test=failing, mine_case=failing, conftest=failing, _shared="X = 1\n")
    found = _found(write(folder, mine=f"from _shared import X\n{SOUND}"))
    assert list(found.migrations) == ["lower_emails"]
    assert found.broken == {}


def test_file_named_like_an_installed_module_hides_nothing(folder: Path) -> None:
    found = _found(write(folder, json=SOUND))
    assert list(found.migrations) == ["lower_emails"]
    spec = PathFinder.find_spec("json")
    assert spec is not None
    assert spec.origin != str(folder / "json.py")


def _found(folder: Path) -> Discovered:
    return discover(in_folder(folder))


def test_missing_folder_is_reported(tmp_path: Path) -> None:
    (entry,) = _found(tmp_path / "nowhere").broken.values()
    assert str(entry) == (
        f"{tmp_path}/nowhere: plugin_paths has a folder that cannot be read: No such file or directory;"
        " create it, or correct plugin_paths in the settings"
    )
    (tmp_path / "file").write_text("")
    assert "has a file, not a folder" in str(_found(tmp_path / "file").broken["file"])


def test_file_that_every_user_may_write_is_refused_alone(folder: Path) -> None:
    write(folder, exposed="raise AssertionError\n", fine=SOUND)
    (folder / "exposed.py").chmod(0o666)
    found = _found(folder)
    assert list(found.migrations) == ["lower_emails"]
    assert str(found.broken["exposed"]) == (
        f"{folder}/exposed.py:1: every user may write this file; chmod o-w {folder}/exposed.py"
    )


@pytest.mark.parametrize("exposed", ["", "..", "_shared.py", "__pycache__", "parts", "parts/one.py"])
def test_folder_is_refused_if_every_user_may_write_what_it_imports(folder: Path, exposed: str) -> None:
    write(folder, fine=SOUND, _shared="")
    (folder / "__pycache__").mkdir(exist_ok=True)
    write(folder / "parts", one="")
    path = (folder / exposed).resolve()
    path.chmod(path.stat().st_mode | 0o002)
    found = _found(folder)
    assert found.migrations == {}
    assert str(found.broken["migrations"]) == f"{folder}: every user may write {path}; chmod o-w {path}"


def test_sticky_folder_above_and_a_virtual_environment_within_are_no_danger(folder: Path) -> None:
    folder.parent.chmod(0o1777)
    write(folder, fine=SOUND)
    for inside in (".git", "environment"):
        (folder / inside).mkdir()
        (folder / inside).chmod(0o777)
    (folder / "environment" / "pyvenv.cfg").write_text("")
    assert list(_found(folder).migrations) == ["lower_emails"]


def test_path_is_relative_to_the_settings_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, fine=SOUND)
    file = folder.parent / "headrace.toml"
    file.write_text('plugin_paths = ["./migrations"]\n')
    monkeypatch.chdir("/")
    settings = load_settings(file)
    assert catalog.migration_class(settings, "lower_emails").__name__ == "Lowers"
    assert Path(catalog.origins(settings)["lower_emails"]) == folder


def test_paths_may_come_from_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, fine=SOUND)
    file = folder.parent / "headrace.toml"
    file.write_text("")
    monkeypatch.setenv("HEADRACE_PLUGIN_PATHS", '["migrations"]')
    assert "lower_emails" in catalog.migrations(load_settings(file))


def test_what_a_file_prints_is_not_in_the_output(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(_found(write(folder, loud=f"print('loud')\n{SOUND}")).migrations) == ["lower_emails"]
    assert capsys.readouterr() == ("", "loud\n")


class Site:
    """A directory of installed packages, first on Python's path."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def install(self, name: str, version: str, value: str, files: Mapping[str, str]) -> None:
        """Install a distribution with an entry point `own` for `value`, and these modules."""
        metadata = self._directory / f"{name.replace('-', '_')}-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (metadata / "entry_points.txt").write_text(f"[headrace.migrations]\nown = {value}\n")
        names = [f"{metadata.name}/METADATA", f"{metadata.name}/entry_points.txt", f"{metadata.name}/RECORD"]
        (metadata / "RECORD").write_text("".join(f"{each},,\n" for each in [*names, *files]))
        for path, text in files.items():
            (self._directory / path).parent.mkdir(exist_ok=True)
            (self._directory / path).write_text(text)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    directory = tmp_path / "site"
    directory.mkdir()
    monkeypatch.syspath_prepend(str(directory))
    return Site(directory)


@pytest.mark.parametrize("value", ["acme.emails:Lowers", "acme.emails", "acme"])
def test_entry_point_is_a_class_a_module_or_a_package(site: Site, value: str) -> None:
    site.install("acme-migrations", "1.2", value, {"acme/__init__.py": "", "acme/emails.py": SOUND})
    settings = settings_of()
    assert catalog.migration_class(settings, "lower_emails").__module__ == "acme.emails"
    assert catalog.origins(settings)["lower_emails"] == "acme-migrations 1.2"
    assert catalog.broken(settings) == {}


@pytest.mark.parametrize(
    ("value", "text", "said"),
    [
        ("acme.nowhere", "", "{metadata}:2: cannot be imported: ModuleNotFoundError: No module named 'acme.nowhere'"),
        ("acme.emails:Uppers", SOUND, "{metadata}:2: cannot be imported: AttributeError: module 'acme.emails' has no"),
        ("acme.emails", "x = 1\n", "{metadata}:2: entry point own names acme.emails, which defines no migration"),
        ("acme.emails:x", "x = 1\n", "{metadata}:2: entry point own names acme.emails:x, which is not a class but int"),
        ("acme.emails:Lowers", BASELESS, "{site}/acme/emails.py:7: class Lowers is not derived from Migration"),
        ("acme.emails", "x = 1\nimport sys\nsys.exit()\n", "{site}/acme/emails.py:3: cannot be imported: SystemExit"),
        ("acme", "def (:\n", "{site}/acme/emails.py:1: cannot be imported: SyntaxError: "),
    ],
)
def test_broken_entry_point_is_one_line_with_its_place(
    site: Site, tmp_path: Path, value: str, text: str, said: str
) -> None:
    site.install("acme-migrations", "1.2", value, {"acme/__init__.py": "", "acme/emails.py": text})
    (entry,) = discover(installed()).broken.values()
    metadata = tmp_path / "site" / "acme_migrations-1.2.dist-info" / "entry_points.txt"
    assert str(entry).startswith(said.format(metadata=metadata, site=tmp_path / "site"))
    assert entry.origin == "acme-migrations 1.2"
    assert "skip_resets" in catalog.migrations(settings_of())


def test_folder_and_entry_point_of_one_name_are_both_refused(site: Site, folder: Path) -> None:
    files: dict[str, Any] = {"acme/__init__.py": "", "acme/emails.py": SOUND}
    site.install("acme-migrations", "1.2", "acme.emails", files)
    settings = settings_of(write(folder, mine=SOUND))
    assert "lower_emails" not in catalog.migrations(settings)
    assert "acme/emails.py:7" in str(catalog.broken(settings)["lower_emails"])
