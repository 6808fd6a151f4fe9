"""The wheel, installed elsewhere: complete, and working without the checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from zipfile import ZipFile

import pytest

from consumers.testing.promises import PROMISES
from consumers.testing.row_feed import RowFeed
from infra.settings.file import load_settings
from tests.conftest import Database

CHECKOUT = Path(__file__).parents[1]
PACKAGES = ("schemas", "infra", "producers", "consumers")
DEPLOYMENT = ("infra/compose/", "infra/kubernetes/", "infra/observability/", "infra/systemd/")
"""Files for operators, which are used from the checkout; nothing of the application reads them."""
STUBS = "infra/stubs/"
"""Packages of stubs, which are installed next to the packages that they are for."""
COMPILED = "schemas/codec/_compiled.cpython-"
"""How the compiled codec's file begins; it is there where there is a compiler."""
SETUPTOOLS = 77
"""The oldest that pyproject.toml accepts."""


def has_setuptools() -> bool:
    try:
        return int(version("setuptools").split(".")[0]) >= SETUPTOOLS
    except PackageNotFoundError:
        return False


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, since a build leaves its own directories next to them."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "headrace.py"):
        shutil.copy(CHECKOUT / name, source)
    for name in PACKAGES:
        shutil.copytree(CHECKOUT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    return source


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def wheel_without_codec(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that a machine without a compiler builds."""
    elsewhere = tmp_path_factory.mktemp("without") / "source"
    shutil.copytree(source, elsewhere, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    return built(elsewhere, elsewhere.parent, CC=str(elsewhere / "no-compiler"))


def built(source: Path, target: Path, **environment: str) -> Path:
    """Build the wheel into a directory, and return it."""
    # Isolated, the build fetches setuptools from the package index, as the checkout's own environment was made.
    isolation = ["--no-isolation"] if has_setuptools() else []
    command = [sys.executable, "-m", "build", "--wheel", *isolation, "--outdir", str(target), str(source)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return next(target.glob("headrace-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment_with(wheel, tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture(scope="module")
def installed_without_codec(wheel_without_codec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment_with(wheel_without_codec, tmp_path_factory.mktemp("without-codec"))


def environment_with(wheel: Path, directory: Path) -> Path:
    """Make a virtual environment that has the wheel, and this one's other packages; return its directory."""
    place = directory / "venv"
    venv.create(place, symlinks=True)
    python = place / "bin" / "python"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check"),
            *("--no-index", "--no-deps", wheel),
        ],
        check=True,
    )
    purelib = sysconfig.get_path("purelib", vars={"base": str(place)})
    # A directory named in a .pth file has its own .pth files ignored, and so the editable install of the checkout.
    Path(purelib, "borrowed.pth").write_text("\n".join(site.getsitepackages()))
    return place


def run(installed: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the environment, from another directory and with nothing that leads to the checkout."""
    elsewhere = installed.parent / "work"
    elsewhere.mkdir(exist_ok=True)
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HEADRACE_", "PYTHON", "VIRTUAL_ENV")) and str(CHECKOUT) not in value
    }
    environment["PATH"] = os.defpath
    return subprocess.run(
        [installed / "bin" / command[0], *command[1:]],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.long
def test_every_file_of_the_packages_is_in_it(source: Path, wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        inside = {
            name
            for name in archive.namelist()
            if ".dist-info/" not in name and not name.startswith((*DEPLOYMENT, COMPILED))
        }
    files = {
        str(path.relative_to(source)).removeprefix(STUBS)
        for name in PACKAGES
        for path in (source / name).rglob("*")
        if path.is_file()
    }
    assert inside == {"headrace.py"} | {name for name in files if not name.startswith(DEPLOYMENT)}
    assert {"schemas/gitlab_schemas.toml", "infra/postgres/control.sql", "infra/stack/brokers/kafka_jars.txt"} <= inside
    assert {f"{package}/py.typed" for package in PACKAGES} <= inside


def test_its_own_files_are_those_imported(installed: Path) -> None:
    names = ("headrace", *PACKAGES)
    program = f"import {', '.join(names)}; print(*({', '.join(f'{name}.__file__' for name in names)},), sep='\\n')"
    ended = run(installed, "python", "-c", program)
    assert ended.returncode == 0, ended.stderr
    files = ended.stdout.splitlines()
    assert len(files) == len(names)
    assert all(Path(file).is_relative_to(installed) for file in files), files


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_its_codec_is_compiled(wheel: Path, installed: Path) -> None:
    with ZipFile(wheel) as archive:
        assert any(name.startswith(COMPILED) for name in archive.namelist())
    assert (
        run(installed, "python", "-c", "from schemas.codec import implementation; print(implementation.name)").stdout
        == "C\n"
    )


def test_it_is_built_without_a_compiler(wheel_without_codec: Path, installed_without_codec: Path) -> None:
    with ZipFile(wheel_without_codec) as archive:
        assert not any(name.startswith(COMPILED) for name in archive.namelist())
    ended = run(
        installed_without_codec,
        "python",
        "-c",
        "from schemas.codec import implementation as codec; print(codec.name, codec.__file__)",
    )
    name, file = ended.stdout.split()
    assert name == "Python"
    assert Path(file).is_relative_to(installed_without_codec)


@pytest.mark.long
def test_type_checker_sees_the_public_names(installed: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from headrace import Migration, Op, Skip\nfrom headrace import Sifting\n\nreveal_type(Skip('x').reason)\n"
        "reveal_type(Op.READ)\nreveal_type(Migration.name)\n"
    )
    command = ("python", "-m", "mypy", "--strict", "--cache-dir", tmp_path / "cache", program)
    ended = run(installed, *map(str, command))
    found = [line.removeprefix(f"{program}:") for line in ended.stdout.splitlines()]
    assert found == [
        '2: error: Module "headrace" has no attribute "Sifting"  [attr-defined]',
        '4: note: Revealed type is "str"',
        '5: note: Revealed type is "Literal[schemas.events.Op.READ]?"',
        '6: note: Revealed type is "str"',
        "Found 1 error in 1 file (checked 1 source file)",
    ], ended.stdout + ended.stderr


BROKEN = {
    "syntax_error": ("def broken(:", "1: cannot be imported: SyntaxError: "),
    "import_error": ("import pandas_that_is_nowhere", "1: cannot be imported: ModuleNotFoundError: "),
    "wrong_base": ("class LowerEmails:", "10: class LowerEmails is not derived from Migration; "),
    "skip_resets": (
        '    name = "skip_resets"',
        "10: class LowerEmails has the same name, skip_resets, as class SkipRes",
    ),
    "no_name": ("    name: str", "10: class LowerEmails declares no name; "),
    "no_schema": ('    tables = ("users",)', "10: class LowerEmails tables has 'users', which is not schema.table; "),
    "no_comma": ('    tables = ("public.users")', "10: class LowerEmails tables is the string 'public.users', not a "),
    "capitals": (
        '    name = "LowerEmails"',
        "10: class LowerEmails name is 'LowerEmails'; a name has 1 to 63 lowercase",
    ),
    "raises": ("raise ValueError", "1: cannot be imported: ValueError: no message; "),
    "old_api": ("    headrace_api = 0", "10: class LowerEmails is written for API version 0, and this headrace has "),
}
"""Ten kinds of broken files: a line to replace in a generated migration, or the whole file; and what is said."""


def broken_file(sound: str, line: str) -> str:
    """Return the file with `line` in place of the one that begins likewise, else nothing but `line`."""
    start = re.split("[:=(]", line)[0].rstrip()
    found = [each for each in sound.splitlines() if start and re.match(rf"{start}\b", each)]
    return sound.replace(found[0], line, 1) if found else line


@pytest.fixture
def repository(installed: Path, tmp_path: Path) -> Path:
    """A directory with a settings file, and a generated migration in a folder of it."""
    (tmp_path / "headrace.toml").write_text(
        'plugin_paths = ["./migrations"]\n[kafka]\nbootstrap_servers = "127.0.0.1:1"\n'
        '[databases.main]\ndsn = "postgresql://u@127.0.0.1:1/d"\ngitlab_schemas = ["gitlab_main"]\n'
    )
    words = ("new", "migration", "lower_emails", "--table", "public.users", "--set", "email=lower(email)")
    made = command(installed, tmp_path, *words)
    assert made.returncode == 0, made.stderr
    return tmp_path


def command(installed: Path, repository: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return run(installed, "headrace", *words, "--config", str(repository / "headrace.toml"))


@pytest.mark.long
def test_broken_files_of_ten_kinds_are_a_line_each_and_every_other_command_works(
    installed: Path, repository: Path
) -> None:
    folder = repository / "migrations"
    sound = (folder / "lower_emails.py").read_text()
    for stem, (line, _) in BROKEN.items():
        (folder / f"{stem}.py").write_text(broken_file(sound, line))
    listed = command(installed, repository, "migrations", "--json")
    assert (listed.returncode, listed.stderr) == (0, "")
    found = json.loads(listed.stdout)
    assert {"lower_emails", "skip_resets"} <= {each["name"] for each in found["migrations"]}
    said = [f"{each['place']}: {each['problem']}; {each['remedy']}" for each in found["broken"]]
    assert len(said) == len(BROKEN)
    for stem, (_, expected) in BROKEN.items():
        assert [one for one in said if one.startswith(f"{folder}/{stem}.py:{expected}")], (stem, said)
    assert not [one for one in said if "\n" in one]

    refused = command(installed, repository, "consume", "raises")
    assert refused.returncode == 2
    assert refused.stderr.startswith("headrace: error: migration raises: ")
    assert refused.stderr.count("\n") == 1
    for words, code in ((("init", "--sql"), 0), (("verify", "lower_emails"), 1), (("status",), 1)):
        ended = command(installed, repository, *words)
        assert ended.returncode == code, ended.stderr
        assert str(folder) not in ended.stderr
        assert "Traceback" not in ended.stderr


@pytest.mark.long
def test_migration_of_an_installed_package_is_found(installed: Path, repository: Path, tmp_path: Path) -> None:
    package = tmp_path / "package"
    (package / "acme").mkdir(parents=True)
    (repository / "migrations" / "lower_emails.py").rename(package / "acme" / "emails.py")
    (package / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "acme-migrations"\nversion = "1.2"\n[tool.setuptools]\npackages = ["acme"]\n'
        '[project.entry-points."headrace.migrations"]\nacme = "acme"\n'
    )
    pip = [sys.executable, "-m", "pip", "--python", str(installed / "bin" / "python"), "--quiet"]
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", *options, str(package)], check=True)
    try:
        found = json.loads(command(installed, repository, "migrations", "--json").stdout)
    finally:
        subprocess.run([*pip, "uninstall", "--yes", "acme-migrations"], check=True)
    (mine,) = [each for each in found["migrations"] if each["name"] == "lower_emails"]
    assert mine["origin"] == "acme-migrations 1.2"
    assert found["broken"] == []


@pytest.mark.long
@pytest.mark.stack
def test_own_migration_is_tested_by_the_pytest_plugin(installed: Path, repository: Path) -> None:
    words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(repository), str(repository))
    ended = run(installed, "python", *words)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{len(PROMISES) + 2} passed" in ended.stdout


@pytest.mark.stack
def test_own_migration_runs(
    installed: Path, repository: Path, bootstrap_servers: str, prefix: str, database: Database
) -> None:
    config = repository / "headrace.toml"
    text = config.read_text().replace('127.0.0.1:1"', f'{bootstrap_servers}"')
    config.write_text(f'prefix = "{prefix}"\n' + text.replace("postgresql://u@127.0.0.1:1/d", database.dsn))
    connection = database.connect()
    connection.execute("CREATE TABLE public.users (id bigint PRIMARY KEY, email text)")
    connection.execute("INSERT INTO public.users VALUES (1, 'One'), (2, 'two'), (3, NULL)")
    feed = RowFeed(load_settings(config), connection, "gitlab_main", "public.users", "main")
    feed.take()
    feed.publish()
    left = command(installed, repository, "verify", "lower_emails")
    assert (left.returncode, "1 rows are left" in left.stderr) == (1, True), left.stderr
    ran = command(installed, repository, "consume", "lower_emails", "--until-caught-up", "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["applied"] == 1
    rows = connection.execute("SELECT email FROM public.users ORDER BY id").fetchall()
    assert rows == [("one",), ("two",), (None,)]
    assert command(installed, repository, "verify", "lower_emails").returncode == 0


def test_installed_command_shows_its_help(installed: Path) -> None:
    ended = run(installed, "headrace", "--help")
    assert ended.returncode == 0, ended.stderr
    assert "Usage: headrace " in ended.stdout
    assert "demo" in ended.stdout


@pytest.mark.stack
@pytest.mark.parametrize("environment", ["installed", pytest.param("installed_without_codec", marks=pytest.mark.long)])
def test_demo_migrates_and_proves_it(environment: str, request: pytest.FixtureRequest) -> None:
    """All four migrations from source to target, with the compiled codec and with Python's."""
    place: Path = request.getfixturevalue(environment)
    ended = run(place, "headrace", "demo", "--rows", "1000")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
    assert list((place.parent / "work").iterdir()) == [], "it left something in the working directory"
