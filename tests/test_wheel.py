"""The wheel, installed elsewhere: complete, and working without the checkout."""

from __future__ import annotations

import os
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

CHECKOUT = Path(__file__).parents[1]
PACKAGES = ("schemas", "infra", "producers", "consumers")
COMPOSE = "infra/compose/"
"""Mounted into containers from the checkout by docker-compose.yml; nothing of the application reads it."""
STUBS = "infra/stubs/"
"""Packages of stubs, which are installed next to the packages that they are for."""
COMPILED = "schemas/_codec.cpython-"
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
    """A copy of the sources, since a build leaves its own directories beside them."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "headrace.py"):
        shutil.copy(CHECKOUT / name, source)
    for name in PACKAGES:
        shutil.copytree(CHECKOUT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    return source


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    # Isolated, the build fetches setuptools from the package index, as the checkout's own environment was made.
    isolation = ["--no-isolation"] if has_setuptools() else []
    command = [sys.executable, "-m", "build", "--wheel", *isolation, "--outdir", str(target), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return next(target.glob("headrace-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that has the wheel, and this one's other packages; returns its directory."""
    place = tmp_path_factory.mktemp("elsewhere") / "venv"
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


def test_every_file_of_the_packages_is_in_it(source: Path, wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        inside = {
            name
            for name in archive.namelist()
            if ".dist-info/" not in name and not name.startswith((COMPOSE, COMPILED))
        }
    files = {
        str(path.relative_to(source)).removeprefix(STUBS)
        for name in PACKAGES
        for path in (source / name).rglob("*")
        if path.is_file()
    }
    assert inside == {"headrace.py"} | {name for name in files if not name.startswith(COMPOSE)}
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
    assert run(installed, "python", "-c", "from schemas import codec; print(codec.name)").stdout == "C\n"


def test_it_is_built_without_a_compiler(source: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "source"
    shutil.copytree(source, elsewhere, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    isolation = ["--no-isolation"] if has_setuptools() else []
    command = [sys.executable, "-m", "build", "--wheel", *isolation, "--outdir", str(tmp_path), str(elsewhere)]
    environment = {**os.environ, "CC": str(tmp_path / "no-compiler")}
    built = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert built.returncode == 0, built.stdout + built.stderr
    with ZipFile(next(tmp_path.glob("headrace-*.whl"))) as archive:
        assert not any(name.startswith(COMPILED) for name in archive.namelist())
        archive.extractall(tmp_path / "unpacked")
    program = "from schemas import codec; print(codec.name, codec.__file__)"
    environment["PYTHONPATH"] = str(tmp_path / "unpacked")
    # Without site, and so without the editable install, which would find the checkout's compiled codec.
    command = [sys.executable, "-S", "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert ended.stdout.split() == ["Python", str(tmp_path / "unpacked" / "schemas" / "codec.py")], ended.stderr


def test_type_checker_sees_the_public_names(installed: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from headrace import Migration, Op, Skip\nfrom headrace import Sifting\n\nreveal_type(Skip('x').reason)\n"
        "reveal_type(Op.READ)\nreveal_type(Migration.name)\n"
    )
    command = ("python", "-m", "mypy", "--strict", "--cache-dir", tmp_path / "cache", program)
    ended = run(installed, *map(str, command))
    found = [line.partition(":")[2] for line in ended.stdout.splitlines()]
    assert found == [
        '2: error: Module "headrace" has no attribute "Sifting"  [attr-defined]',
        '4: note: Revealed type is "builtins.str"',
        '5: note: Revealed type is "Literal[schemas.events.Op.READ]?"',
        '6: note: Revealed type is "builtins.str"',
        "1 error in 1 file (checked 1 source file)",
    ], ended.stdout + ended.stderr


def test_installed_command_shows_its_help(installed: Path) -> None:
    ended = run(installed, "headrace", "--help")
    assert ended.returncode == 0, ended.stderr
    assert "Usage: headrace " in ended.stdout
    assert "demo" in ended.stdout


def test_the_demo_runs(installed: Path) -> None:
    ended = run(installed, "headrace", "demo", "--rows", "1000")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
    assert list((installed.parent / "work").iterdir()) == [], "it left something in the working directory"
