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


def test_every_file_of_the_packages_is_in_it(source: Path, wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        inside = {
            name
            for name in archive.namelist()
            if ".dist-info/" not in name and not name.startswith((COMPOSE, COMPILED))
        }
    files = {
        str(path.relative_to(source)) for name in PACKAGES for path in (source / name).rglob("*") if path.is_file()
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


def test_installed_command_shows_its_help(installed: Path) -> None:
    ended = run(installed, "headrace", "--help")
    assert ended.returncode == 0, ended.stderr
    assert "Usage: headrace " in ended.stdout
    assert "demo" in ended.stdout


@pytest.mark.stack
@pytest.mark.parametrize("environment", ["installed", "installed_without_codec"])
def test_demo_migrates_and_proves_it(environment: str, request: pytest.FixtureRequest) -> None:
    """All four migrations from source to target, with the compiled codec and with Python's."""
    place: Path = request.getfixturevalue(environment)
    ended = run(place, "headrace", "demo", "--rows", "1000")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
    assert list((place.parent / "work").iterdir()) == [], "it left something in the working directory"
